from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from factory import make_tiny

from bcquant.models import decoder as d
from bcquant.models.architecture import STAGES
from bcquant.models.attention import attend, make_context
from bcquant.models.source import open_model

# Same arithmetic in the same type, in other shapes: float32 sums in another order.
ATOL = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> d.Decoder:
    with open_model(make_tiny("qwen2", tmp_path_factory.mktemp("qwen2"))) as source:
        return d.Decoder.load(source)


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 96, (batch, length), generator=torch.Generator().manual_seed(0))


def test_stage_functions_chain_to_the_block(model: d.Decoder) -> None:
    cfg, w = model.config, model.blocks[1]
    h = torch.randn(2, 7, cfg.hidden_size, generator=torch.Generator().manual_seed(2))
    before = h.clone()
    ctx = make_context(cfg, torch.arange(7).unsqueeze(0), 7)

    def linear(x: torch.Tensor, short: str) -> torch.Tensor:
        return F.linear(x, w[f"{short}.weight"], w.get(f"{short}.bias"))

    x = d.attn_input(cfg, w, h)
    q, k, v = (linear(x, short) for short in STAGES[0])
    mid = h + linear(attend(cfg, 1, w, q, k, v, ctx), "self_attn.o_proj")
    gate, up = (linear(d.mlp_input(cfg, w, mid), short) for short in STAGES[2])
    want = mid + linear(d.gated(gate, up), "mlp.down_proj")
    got = d.block_forward(cfg, 1, w, h, ctx)
    torch.testing.assert_close(got, want, atol=0, rtol=0)
    torch.testing.assert_close(h, before, atol=0, rtol=0)


def test_linear_hook_sees_every_module_once_and_may_do_without_weights(model: d.Decoder) -> None:
    cfg = model.config
    weights = {k: v for k, v in model.blocks[0].items() if "_proj.weight" not in k}
    seen: list[str] = []

    def packed(
        x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        assert weight is None
        assert (bias is not None) == (name in STAGES[0])
        seen.append(name)
        return F.linear(x, model.blocks[0][f"{name}.weight"], bias)

    h = torch.randn(1, 4, cfg.hidden_size)
    ctx = make_context(cfg, torch.arange(4).unsqueeze(0), 4)
    got = d.block_forward(cfg, 0, weights, h, ctx, linear=packed)
    torch.testing.assert_close(got, d.block_forward(cfg, 0, model.blocks[0], h, ctx))
    assert seen == [short for stage in STAGES for short in stage]
    with pytest.raises(KeyError, match=r"q_proj.weight"):
        d.block_forward(cfg, 0, weights, h, ctx)


def test_last_only_is_the_last_token_of_each_sequence(model: d.Decoder) -> None:
    tokens = ids(3, 8)
    full = model(tokens)
    torch.testing.assert_close(model(tokens, last_only=True), full[:, -1:], atol=ATOL, rtol=0)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, 5:] = False
    mask[2, :3] = False
    got = model(tokens, mask, last_only=True)
    want = model(tokens, mask)
    for row, last in enumerate((7, 4, 7)):
        torch.testing.assert_close(got[row, 0], want[row, last], atol=ATOL, rtol=0)


def test_head_of_a_tied_model_is_its_embedding(tmp_path: Path) -> None:
    with open_model(make_tiny("smollm2", tmp_path)) as source:
        model = d.Decoder.load(source)
    assert model.head is model.embedding


def test_bfloat16_model_stays_near_float32(tmp_path: Path) -> None:
    with open_model(make_tiny("llama3", tmp_path, "BF16")) as source:
        exact, half = d.Decoder.load(source), d.Decoder.load(source, torch.bfloat16)
    tokens = ids(1, 16)
    got, want = half(tokens), exact(tokens)
    assert got.dtype == torch.bfloat16
    # 8 bits of mantissa through 2 layers: errors of about 1 % of the logits' deviation of 4.
    assert (got.float() - want).std() < 0.03 * want.std()


def test_forward_needs_no_gradients(model: d.Decoder) -> None:
    assert not model(ids(1, 3)).requires_grad
