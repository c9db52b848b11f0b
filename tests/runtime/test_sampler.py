from __future__ import annotations

import math

import pytest
import torch

from bcquant.errors import ConfigError, ShapeError
from bcquant.runtime.sampler import SamplingOptions, filter_scores, penalize, sample


def _logits(seed: int = 0, size: int = 50) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_largest_logit() -> None:
    logits = _logits()
    assert sample(logits, [], SamplingOptions()) == int(logits.argmax())


def test_greedy_needs_no_generator_and_leaves_the_logits_alone() -> None:
    logits = _logits()
    before = logits.clone()
    sample(logits, [1, 2], SamplingOptions(repetition_penalty=2.0))
    assert torch.equal(logits, before)


@pytest.mark.judge
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=0.7),
        SamplingOptions(temperature=1.0, top_k=5),
        SamplingOptions(temperature=1.0, top_k=1000),
        SamplingOptions(temperature=1.3, top_p=0.9),
        SamplingOptions(temperature=1.0, top_p=1e-9),
        SamplingOptions(temperature=1.0, min_p=0.1),
        SamplingOptions(temperature=0.8, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_those_of_transformers(options: SamplingOptions, seed: int) -> None:
    from transformers.generation import logits_process as judge

    logits, history = _logits(seed), [3, 3, 7, 49]
    steps: list[object] = []
    if options.repetition_penalty != 1:
        steps.append(judge.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    steps.append(judge.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(judge.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(judge.TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(judge.MinPLogitsWarper(options.min_p))
    wanted = logits.unsqueeze(0).clone()
    for step in steps:
        wanted = step(torch.tensor([history]), wanted)  # type: ignore[operator]
    scores = logits
    if options.repetition_penalty != 1:
        scores = penalize(logits, history, options.repetition_penalty)
    got = filter_scores(scores, options)
    assert torch.equal(got.isinf(), wanted[0].isinf())
    torch.testing.assert_close(got, wanted[0], rtol=0, atol=1e-6)  # one fp32 rounding apart


def test_top_k_keeps_ties() -> None:
    scores = torch.tensor([1.0, 2.0, 2.0, 0.0])
    kept = filter_scores(scores, SamplingOptions(temperature=1.0, top_k=1))
    assert kept.isfinite().tolist() == [False, True, True, False]


def test_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    scores = penalize(torch.tensor([2.0, -2.0, 1.0]), [0, 1, 1], 2.0)
    assert scores.tolist() == [1.0, -4.0, 1.0]


def test_history_outside_the_vocabulary_is_passed_over() -> None:
    assert penalize(torch.tensor([1.0, 2.0]), [-1, 2, 99], 2.0).tolist() == [1.0, 2.0]


def test_same_seed_draws_the_same_tokens() -> None:
    options = SamplingOptions(temperature=1.0, seed=7)

    def draw() -> list[int]:
        generator = options.generator()
        return [sample(_logits(i), [], options, generator) for i in range(30)]

    assert draw() == draw()


def test_draws_follow_the_probabilities() -> None:
    options = SamplingOptions(temperature=1.0)
    generator = options.generator()
    logits = torch.tensor([0.0, math.log(3.0)])
    count = sum(sample(logits, [], options, generator) for _ in range(2000))
    # p = 3/4: mean 1500, standard deviation sqrt(2000 * 3/16) = 19.4; five of them
    assert abs(count - 1500) < 97


def test_half_precision_logits_are_taken() -> None:
    logits = _logits().to(torch.bfloat16)
    options = SamplingOptions(temperature=1.0, top_p=0.9)
    assert 0 <= sample(logits, [], options, options.generator()) < 50


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_option_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SamplingOptions(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_refused(bad: float) -> None:
    logits = _logits()
    logits[3] = bad
    with pytest.raises(ShapeError, match="largest logit"):
        sample(logits, [], SamplingOptions())


def test_logits_that_rule_out_everything_are_refused() -> None:
    with pytest.raises(ShapeError, match="largest logit"):
        sample(torch.full((4,), -math.inf), [], SamplingOptions())


@pytest.mark.parametrize("shape", [(2, 5), (0,), ()])
def test_logits_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="logits have shape"):
        sample(torch.zeros(shape), [], SamplingOptions())
