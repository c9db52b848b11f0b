"""The streamed Fisher form, against a whole model's autograd and against measured divergences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factory import make_tiny

from bcquant.calib.sensitivity import SensitivityStream, SetCost
from bcquant.errors import SolverError
from bcquant.models.architecture import STAGES
from bcquant.models.decoder import Decoder
from bcquant.models.source import ModelSource, open_model
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.spec.quant_format import QuantFormat

FORMATS = tuple(QuantFormat(bits, 32) for bits in (2, 3, 4, 8))


def some_ids(source: ModelSource, num: int = 6, seq_len: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, source.config.vocab_size, (num, seq_len))


def measured(source: ModelSource, ids: np.ndarray, folder: Path, seed: int = 0) -> list[SetCost]:
    """Costs in model order."""
    stream = SensitivityStream(source, ids, folder, FORMATS)
    stream.forward(seed)
    layers = []
    while stream.layer:
        layers.append(stream.run_layer())
        stream.forget_previous()
    stream.close()
    return [cost for layer in reversed(layers) for cost in layer]


@pytest.mark.parametrize("family", ["llama_bias", "qwen3", "mistral", "baichuan2_13b"])
def test_costs_are_those_of_a_whole_models_autograd(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, torch.Tensor] = {}

    def nearest(weight: torch.Tensor, weights_K: torch.Tensor, fmt: QuantFormat, _: int):
        q = quantize_nearest(weight.numpy(), fmt)
        scales, zeros = (torch.from_numpy(a.astype(np.float32)) for a in (q.scales_NG, q.zeros_NG))
        return scales, zeros

    monkeypatch.setattr("bcquant.calib.sensitivity.search_grid", nearest)
    with open_model(make_tiny(family, tmp_path / "m")) as source:
        ids = some_ids(source)
        costs = measured(source, ids, tmp_path, seed=5)
        model = Decoder.load(source)

    def observed(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, name: str):
        y = F.linear(x, w, b).requires_grad_()
        taken[f"{len(taken) // 7}.{name}"] = y
        taken_inputs[f"{(len(taken) - 1) // 7}.{name}"] = x.detach()
        return y

    taken_inputs: dict[str, torch.Tensor] = {}
    model.linear = observed
    hidden = Decoder.final_hidden.__wrapped__(model, torch.from_numpy(ids))
    log_probs = F.log_softmax(hidden @ model.head.T, -1)
    generator = torch.Generator().manual_seed(5)
    labels = torch.stack(
        [torch.multinomial(row.exp(), 1, generator=generator) for row in log_probs.detach()]
    )
    grads = torch.autograd.grad(log_probs.gather(-1, labels).sum(), list(taken.values()))
    pulls = dict(zip(taken, grads, strict=True))
    for i, cost in enumerate(costs):
        layer, stage = divmod(i, len(STAGES))
        for fmt in FORMATS:
            moved = torch.zeros(ids.shape)
            for name in STAGES[stage]:
                weight = model.blocks[layer][f"{name}.weight"]
                change = torch.from_numpy(dequantize(quantize_nearest(weight.numpy(), fmt)))
                change = F.linear(taken_inputs[f"{layer}.{name}"], change - weight)
                moved += (pulls[f"{layer}.{name}"] * change).sum(-1)
            # Float32 sums of 64 to 384 products in another order, through two layers.
            assert cost.kl[fmt.bits] == pytest.approx(0.5 * float(moved.square().mean()), rel=1e-3)


def test_predicted_divergence_ranks_sets_as_the_measured_one(tmp_path: Path) -> None:
    with open_model(make_tiny("qwen2", tmp_path / "m", num_hidden_layers=4)) as source:
        ids = some_ids(source, 16, 32)
        costs = measured(source, ids, tmp_path)
        model = Decoder.load(source)
    fmt = QuantFormat(4, 32)
    tokens = torch.from_numpy(ids)
    wanted = F.log_softmax(model(tokens), -1)
    found = []
    for i in range(len(costs)):
        layer, stage = divmod(i, len(STAGES))
        block = model.blocks[layer]
        for name in STAGES[stage]:
            weight = block[f"{name}.weight"].numpy()
            rounded = torch.from_numpy(dequantize(quantize_nearest(weight, fmt)))
            model.blocks[layer] = {**model.blocks[layer], f"{name}.weight": rounded}
        kl = (wanted.exp() * (wanted - F.log_softmax(model(tokens), -1))).sum(-1).mean()
        found.append(float(kl))
        model.blocks[layer] = block
    predicted = [cost.kl[4] for cost in costs]
    # 512 tokens and one draw of labels, random weights: 0.9 and more over seeds; 0 is chance.
    assert np.corrcoef(np.log(predicted), np.log(found))[0, 1] > 0.7


def test_more_bits_cost_less(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path / "m")) as source:
        costs = measured(source, some_ids(source), tmp_path)
    for cost in costs:
        assert sorted(cost.errors.values(), reverse=True) == list(cost.errors.values())
        assert cost.kl[2] > cost.kl[4] > cost.kl[8] > 0


def test_another_process_goes_on_at_any_layer(tmp_path: Path) -> None:
    with open_model(make_tiny("llama3", tmp_path / "m", num_hidden_layers=3)) as source:
        ids = some_ids(source)
        whole = measured(source, ids, tmp_path)
        first = SensitivityStream(source, ids, tmp_path, FORMATS)
        first.forward(0)
        first.close()
        layers = []
        for left in (3, 2, 1):
            torn = SensitivityStream(source, ids, tmp_path, FORMATS, left)
            torn.run_layer()  # killed before it was recorded
            torn.close()
            stream = SensitivityStream(source, ids, tmp_path, FORMATS, left)
            layers.append(stream.run_layer())
            stream.forget_previous()
            stream.close()
    assert [cost for layer in reversed(layers) for cost in layer] == whole


def test_logits_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_model(make_tiny("llama", tmp_path / "m")) as source:
        read = source.weight

        def damaged(name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
            return read(name, rows) * np.float32(np.inf if name == "model.norm.weight" else 1)

        monkeypatch.setattr(source, "weight", damaged)
        with pytest.raises(SolverError, match="logits are not finite"):
            measured(source, some_ids(source), tmp_path)
