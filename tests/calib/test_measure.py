"""bcquant.calib.measure: perplexity and divergence against plain float64."""

from __future__ import annotations

import math

import pytest
import torch

from bcquant.calib import measure
from bcquant.calib.likelihood import perplexity
from bcquant.calib.measure import Head, PairMeter, nll_sum

M, C, V = 23, 12, 40


def tensors(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(M, C, generator=g),
        1 + 0.2 * torch.randn(C, generator=g),
        torch.randn(V, C, generator=g),
    )


def plain_log_probs(hidden: torch.Tensor, norm: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    h = hidden.double()
    h = h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.double()
    logits = h @ head.double().T
    return logits - logits.exp().sum(-1, keepdim=True).log()


TARGETS = torch.randint(V, (M,), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("piece", [1, 5, 256])
def test_nll_sum_equals_float64_in_any_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(measure, "HEAD_TOKENS", piece)
    hidden, norm, head = tensors(0)
    found = nll_sum(Head(norm, head, 1e-5), hidden, TARGETS)
    wanted = -plain_log_probs(hidden, norm, head)[torch.arange(M), TARGETS].sum()
    assert found == pytest.approx(float(wanted), rel=1e-6)  # float32 logits, float64 sum


def test_figures_equal_float64() -> None:
    (hidden, norm, head), (other, _, _) = tensors(0), tensors(1)
    near = hidden + 0.2 * other
    model = Head(norm, head, 1e-5)
    meter = PairMeter()
    for part in (slice(0, 10), slice(10, M)):
        pair = (model.log_probs(model.normed(hidden[part])),
                model.log_probs(model.normed(near[part])))  # fmt: skip
        meter.add(pair, TARGETS[part])
    p, q = plain_log_probs(hidden, norm, head), plain_log_probs(near, norm, head)
    index = torch.arange(M)
    before = math.exp(float(-p[index, TARGETS].mean()))
    after = math.exp(float(-q[index, TARGETS].mean()))
    figures = meter.figures()
    # Float32 log-probabilities: 1e-6 each.
    assert figures["perplexity_float"] == pytest.approx(before, rel=1e-5)
    assert figures["perplexity_quantized"] == pytest.approx(after, rel=1e-5)
    assert figures["increase_percent"] == pytest.approx(100 * (after / before - 1), abs=1e-3)
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert kl > 0
    assert figures["kl_mean"] == pytest.approx(kl, rel=1e-4)
    assert figures["top1_agreement"] == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert figures["tokens"] == M


def test_a_model_does_not_diverge_from_itself() -> None:
    hidden, norm, head = tensors(0)
    model, meter = Head(norm, head, 1e-5), PairMeter()
    values = model.log_probs(model.normed(hidden))
    meter.add((values, values), TARGETS)
    figures = meter.figures()
    assert figures["kl_mean"] == 0
    assert figures["increase_percent"] == 0
    assert figures["top1_agreement"] == 1


def test_perplexity_of_a_broken_model_is_infinite() -> None:
    assert perplexity(1e6, 1) == math.inf
    assert perplexity(float("nan"), 1) == math.inf
    assert perplexity(math.log(8.0) * 3, 3) == pytest.approx(8.0)
