"""Figures of two sets of logits, against a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bcquant.eval.verify.agreement import AgreementMeter


def test_figures_are_those_of_a_naive_loop() -> None:
    rng = np.random.default_rng(3)
    windows = [rng.integers(0, 11, size) for size in (70, 5)]  # one longer than a batch of rows
    meter, kls, nlls, errors, same, spread = AgreementMeter(), [], [[], []], [], [], []
    for ids in windows:
        source = rng.standard_normal((len(ids), 11)).astype(np.float32)
        export = source + 0.1 * rng.standard_normal(source.shape).astype(np.float32)
        meter.add(source, export, ids)
        for t in range(len(ids)):
            pair = [[float(v) for v in side[t]] for side in (source, export)]
            logs = [[v - math.log(sum(map(math.exp, row))) for v in row] for row in pair]
            kls.append(sum(math.exp(p) * (p - q) for p, q in zip(*logs, strict=True)))
            errors += [abs(b - a) for a, b in zip(*pair, strict=True)]
            same.append(pair[0].index(max(pair[0])) == pair[1].index(max(pair[1])))
            mean = sum(pair[0]) / len(pair[0])
            spread += [(v - mean) ** 2 for v in pair[0]]
            if t + 1 < len(ids):
                for side in (0, 1):
                    nlls[side].append(-logs[side][ids[t + 1]])
    found = meter.result()
    # float64 on both sides: rounding of sums of 75 numbers
    assert found.kl_mean == pytest.approx(np.mean(kls), rel=1e-9)
    assert found.kl_999 == pytest.approx(np.quantile(kls, 0.999), rel=1e-9)
    assert found.max_error == max(errors)
    assert found.rms_error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-9)
    assert found.spread == pytest.approx(math.sqrt(np.mean(spread)), rel=1e-9)
    assert found.top1 == np.mean(same)
    assert found.perplexity == pytest.approx([math.exp(np.mean(side)) for side in nlls], rel=1e-9)
    assert found.num_tokens == 75


def test_equal_logits_have_no_difference() -> None:
    logits = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    meter = AgreementMeter()
    meter.add(logits, logits, np.arange(9) % 7)
    found = meter.result()
    assert (found.max_error, found.kl_mean, found.top1) == (0, 0, 1)
    assert found.perplexity_change == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_counts_as_a_huge_error(value: float) -> None:
    logits = np.random.default_rng(0).standard_normal((9, 7)).astype(np.float32)
    broken = logits.copy()
    broken[4, 2] = value
    meter = AgreementMeter()
    meter.add(logits, broken, np.arange(9) % 7)
    assert meter.result().relative_error > 1e6
