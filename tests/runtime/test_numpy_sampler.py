"""The numpy sampler against the torch one, whose filters are judged by transformers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bcquant.errors import ShapeError
from bcquant.runtime import numpy_sampler, sampler
from bcquant.runtime.numpy_sampler import sample
from bcquant.runtime.sampling_options import SamplingOptions

FILTERS = (
    {},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
)


def _logits(seed: int = 0, size: int = 50) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size, np.float32) * 3


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_torch(filters: dict[str, float], seed: int) -> None:
    options = SamplingOptions(temperature=0.8, repetition_penalty=1.3, **filters)  # type: ignore[arg-type]
    logits, history = _logits(seed), [3, 3, 7, 49, 50, -1]
    mine = numpy_sampler.filter_scores(numpy_sampler.penalize(logits, history, 1.3), options)
    scores = sampler.penalize(torch.from_numpy(logits), history, 1.3)
    wanted = sampler.filter_scores(scores, options).numpy()
    assert np.array_equal(np.isinf(mine), np.isinf(wanted))
    kept = np.isfinite(wanted)
    # one float32 division on either side, of a scalar that torch holds in float64
    assert np.abs(mine[kept] - wanted[kept]).max() < 1e-6


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_ids_are_those_of_torch(penalty: float) -> None:
    options = SamplingOptions(repetition_penalty=penalty)
    for seed in range(20):
        logits, history = _logits(seed), [int(_logits(seed).argmax()), 4]
        before = logits.copy()
        wanted = sampler.sample(torch.from_numpy(logits), history, options)
        assert sample(logits, history, options) == wanted
        assert np.array_equal(logits, before)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.0001, 0.1999], np.float32))
    generator = np.random.Generator(np.random.PCG64(3))
    options = SamplingOptions(temperature=1.0)
    drawn = [sample(logits, [], options, generator) for _ in range(4000)]
    share = np.bincount(drawn, minlength=4) / 4000
    # four standard deviations of a share of 4000 draws are at most 0.032
    assert np.abs(share - np.exp(logits)).max() < 0.032


def test_draw_is_the_first_id_whose_cumulated_probability_exceeds_u() -> None:
    probabilities = np.array([0.25, 0.0, 0.25, 0.5], np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities).astype(np.float32)

    class Fixed(np.random.Generator):
        def __init__(self, value: float) -> None:
            super().__init__(np.random.PCG64(0))
            self._value = value

        def random(self, *_: object, **__: object) -> float:  # type: ignore[override]
            return self._value

    options = SamplingOptions(temperature=1.0)
    wanted = {0.0: 0, 0.24: 0, 0.26: 2, 0.49: 2, 0.51: 3, 1 - 2**-53: 3}
    assert {u: sample(logits, [], options, Fixed(u)) for u in wanted} == wanted


def test_same_seed_draws_the_same_tokens() -> None:
    options = SamplingOptions(temperature=1.5, seed=11)
    runs = []
    for _ in range(2):
        generator = np.random.Generator(np.random.PCG64(options.seed))
        runs.append([sample(_logits(i), [], options, generator) for i in range(20)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_refused(bad: float) -> None:
    logits = _logits()
    logits[7] = bad
    with pytest.raises(ShapeError, match="the largest logit is"):
        sample(logits, [], SamplingOptions())


def test_no_possible_token_is_refused() -> None:
    with pytest.raises(ShapeError, match="the largest logit is -inf"):
        sample(np.full(5, -np.inf, np.float32), [], SamplingOptions())


@pytest.mark.parametrize("shape", [(0,), (2, 3)])
def test_logits_that_are_no_row_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="V > 0"):
        sample(np.zeros(shape, np.float32), [], SamplingOptions())
