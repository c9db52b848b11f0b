"""The tunable model against plain autograd over dequantized weights, for every family's traits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factory import FAMILIES, make_tiny

from bcquant.calib.smoothing import fake_int8_token
from bcquant.calib.tunable import Grid, SealedModel, TunableModel
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD
from bcquant.models.attention import make_context
from bcquant.models.decoder import block_forward
from bcquant.models.norm import rms_norm
from bcquant.models.source import ModelSource, open_model
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

IDS = np.random.default_rng(0).integers(3, 96, (2, 12))


def sealed_model(source: ModelSource, fmt: QuantFormat, lm_head: bool = False) -> SealedModel:
    def tensor(module: str) -> QuantizedTensor:
        name = f"{module}.weight"
        return quantize_nearest(source.weight(name if source.has(name) else EMBEDDING), fmt)

    def stored_float(name: str) -> np.ndarray:
        return source.weight(name).astype(np.float16).astype(np.float32)

    return SealedModel(tensor, stored_float, torch.float16, fmt.activation, lm_head)


def reference_logits(
    source: ModelSource, sealed: SealedModel, leaves: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The same model with float weights that are built from the scales under autograd."""
    cfg = source.config

    def weight(module: str) -> torch.Tensor:
        q = sealed.tensor(module)
        steps = torch.from_numpy(q.codes_NK.astype(np.float32))
        width = q.format.group_width(q.in_features)
        zeros = torch.from_numpy(q.zeros_NG.astype(np.float32)).repeat_interleave(width, 1)
        scales = leaves[module].repeat_interleave(width, 1)
        return (steps - zeros[:, : q.in_features]) * scales[:, : q.in_features]

    def linear(x, w, bias, name):  # type: ignore[no-untyped-def]
        if sealed.activation == "int8_token":
            x = x + (fake_int8_token(x) - x).detach()
        return F.linear(x, w, bias)

    h = torch.from_numpy(sealed.stored_float(EMBEDDING))[torch.from_numpy(IDS)]
    positions = torch.arange(IDS.shape[1]).unsqueeze(0)
    ctx = make_context(cfg, positions, IDS.shape[1])
    for layer in range(cfg.num_layers):
        prefix = f"model.layers.{layer}."
        w = {}
        for name, leaf in leaves.items():
            if name.startswith(prefix):
                short = name[len(prefix) :]
                is_module = leaf.dim() == 2
                w[f"{short}.weight" if is_module else short] = weight(name) if is_module else leaf
        h = block_forward(cfg, layer, w, h, ctx, linear=linear)
    x = rms_norm(h, leaves[FINAL_NORM], cfg.rms_norm_eps)
    if sealed.lm_head:
        return linear(x, weight("lm_head"), None, "lm_head")
    head = sealed.stored_float(EMBEDDING if cfg.tie_embeddings else HEAD)
    return x @ torch.from_numpy(head).T


@pytest.mark.parametrize(
    ("family", "fmt", "lm_head"),
    [(family, QuantFormat(4, 32), False) for family in FAMILIES]
    + [
        ("qwen2", QuantFormat(2, 40, symmetric=False), True),  # short last group: 64 = 40 + 24
        ("smollm2", QuantFormat(8, -1, symmetric=False), True),  # steps beyond int8, tied head
        ("qwen3", QuantFormat(8, -1, activation="int8_token"), True),
    ],
)
def test_gradients_equal_plain_autograd(
    family: str, fmt: QuantFormat, lm_head: bool, tmp_path: Path
) -> None:
    with open_model(make_tiny(family, tmp_path)) as source:
        sealed = sealed_model(source, fmt, lm_head)
        model = TunableModel(source.config, sealed, np.arange(source.config.vocab_size))
        stored = model.stored(torch.zeros_like(model.start_P))
        assert torch.equal(stored, model.start_P)
        direction = torch.randn(2, 12, 96, generator=torch.Generator().manual_seed(1))

        wanted = model.leaves(stored)
        logits = reference_logits(source, sealed, wanted)
        (logits * direction).sum().backward()

        found = model.leaves(stored)
        normed, head = model.normed(found, torch.from_numpy(IDS)), model.head(found)
        seen = normed.detach() @ head.T
        # Two orders of the same float32 sums; int8 rounding may tip a value at a tie.
        bound = 2e-3 if fmt.activation == "int8_token" else 2e-5
        assert float((seen - logits.detach()).norm() / logits.detach().norm()) < bound
        normed.backward(direction @ head)
        if lm_head:
            model.head_gradient(found, direction.flatten(0, 1).T @ normed.detach().flatten(0, 1))
        assert found.keys() == wanted.keys()
        for name, leaf in found.items():
            assert leaf.grad is not None and wanted[name].grad is not None, name
            error = float((leaf.grad - wanted[name].grad).norm())
            assert error < 20 * bound * float(wanted[name].grad.norm()) + 1e-6, name


def test_scale_gradient_equals_finite_difference() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 20)).astype(np.float32)
    q = quantize_nearest(weight, QuantFormat(3, 16, symmetric=False))
    grid = Grid(q)
    scales = torch.from_numpy(q.scales_NG.astype(np.float32))
    assert torch.equal(grid.weight(scales), torch.from_numpy(dequantize(q)))
    slope = torch.from_numpy(rng.standard_normal((3, 20)).astype(np.float32))
    moved = scales.clone()
    moved[1, 1] += 1.0  # linear in the scales: any step gives the derivative
    change = float(((grid.weight(moved) - grid.weight(scales)) * slope).sum())
    # 4 products of numbers below 32 in float32
    assert float(grid.scale_gradient(slope.clone())[1, 1]) == pytest.approx(change, abs=1e-4)


def test_parameters_move_scales_relatively_and_floats_by_their_mean(tmp_path: Path) -> None:
    with open_model(make_tiny("qwen2", tmp_path)) as source:
        sealed = sealed_model(source, QuantFormat(4, 32))
        model = TunableModel(source.config, sealed, np.arange(96))
        scales, floats = model.split(model.stored(torch.full_like(model.start_P, 0.25)))
        q = sealed.tensor("model.layers.1.mlp.up_proj")
        wanted = (1.25 * q.scales_NG.astype(np.float32)).astype(np.float16)
        assert np.array_equal(scales["model.layers.1.mlp.up_proj"], wanted)
        bias = sealed.stored_float("model.layers.0.self_attn.k_proj.bias")
        found = floats["model.layers.0.self_attn.k_proj.bias"]
        # float16 keeps 11 bits
        assert np.allclose(found, bias + 0.25 * np.abs(bias).mean(), rtol=2**-11, atol=1e-4)
        assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
