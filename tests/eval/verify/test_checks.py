"""The checks on programs made by hand: what passes, and what the sentence of a failure says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from bcquant.eval.verify.agreement import Agreement
from bcquant.eval.verify.checks import (
    check_greedy,
    check_logits,
    check_perplexity,
    check_settings,
    check_tokens,
    first_layer,
)
from bcquant.eval.verify.corpus import PLAIN, hard_corpus
from bcquant.eval.verify.thresholds import KINDS
from bcquant.spec.model_config import ModelConfig

GOOD = Agreement(100, 2.0, 1e-5, 1e-6, 1e-12, 1e-11, 1.0, (10.0, 10.0))
CONFIG = ModelConfig("llama", 96, 64, 96, 2, 4, 4, 16, 256)


class Program:
    """After t tokens it wants token (t * step) % vocab, `margin` ahead of its neighbour."""

    vocab_size, end_ids = 16, (15,)

    def __init__(self, step: int = 3, margin: float = 1.0, offset: float = 0.0) -> None:
        self.step, self.margin, self.offset = step, margin, offset

    def pieces(self) -> list[str]:
        return ["<s>"]

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 16 for c in text]

    def logits(self, ids: Sequence[int]) -> Any:
        best = (np.arange(1, len(ids) + 1) * self.step) % 15
        logits = np.full((len(ids), 16), -9.0, np.float32)
        logits[np.arange(len(ids)), best] = 0
        logits[np.arange(len(ids)), (best + 1) % 15] = -self.margin
        return logits

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        found: list[int] = []
        while len(found) < num_tokens:
            found.append(int(self.logits([*ids, *found])[-1].argmax()))
        return found

    def hidden(self, ids: Sequence[int]) -> list[Any]:
        states = [np.ones((len(ids), 4)), np.full((len(ids), 4), 2.0)]
        states[1] += self.offset
        return states

    def close(self) -> None:
        pass


class Leaning(Program):
    """Takes the second best token at the fifth step."""

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        found = super().greedy(ids, num_tokens)
        found[4] = (found[4] + 1) % 15
        return found


class Ending(Program):
    """Says an end token after three."""

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        return [*super().greedy(ids, 3), 15, 1, 1]


def greedy(source: Program, export: Program, tie: float) -> Any:
    return check_greedy(cast(Any, source), export, ["abc"], 8, tie, lambda *told: None)


def test_greedy_of_the_same_program_passes() -> None:
    found = greedy(Program(), Program(), 0.1)
    assert found.passed and found.figures == {"prompts": 1, "tokens": 8, "ties": 0, "gap": 0.0}


def test_greedy_names_the_step_and_the_gap() -> None:
    found = greedy(Program(), Leaning(), 0.1)
    assert not found.passed
    assert found.problem.startswith("after 'abc', token 4 is ") and "1 ahead" in found.problem


def test_greedy_counts_a_near_tie_and_reads_on() -> None:
    found = greedy(Program(margin=0.05), Leaning(margin=0.05), 0.1)
    assert found.passed and found.figures["ties"] == 1 and found.figures["tokens"] == 8


def test_greedy_stops_at_an_end_token() -> None:
    found = greedy(Program(), Ending(), 20.0)  # every gap counts as a tie here
    assert found.figures["tokens"] == 4


def test_tokens_name_the_text() -> None:
    class Other(Program):
        def encode(self, text: str) -> list[int]:
            ids = super().encode(text)
            return ids[1:] if text == "\t" else ids

    assert check_tokens(cast(Any, Program()), Program()).passed
    found = check_tokens(cast(Any, Program()), Other())
    assert not found.passed and found.figures["different"] == 1
    assert found.problem is not None and "'\\t'" in found.problem


def test_hard_corpus_holds_a_vocabulary_s_own_pieces() -> None:
    texts = hard_corpus(["<s>", "", "<|tool|>"])
    assert texts[: len(PLAIN)] == list(PLAIN) and "" in texts
    assert "before<|tool|>after" in texts and "before <s> after" in texts


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("figure", "limit", "named"),
    [("max_error", "max_error", "relative_error"), ("kl_mean",) * 3, ("kl_999",) * 3],
)
def test_logits_fail_just_above_each_limit(kind: str, figure: str, limit: str, named: str) -> None:
    limits = KINDS[kind]
    allowed = getattr(limits, limit) * (GOOD.spread if figure == "max_error" else 1)
    assert check_logits("logits", replace(GOOD, **{figure: allowed}), limits).passed
    found = check_logits("logits", replace(GOOD, **{figure: allowed * 1.01}), limits)
    assert not found.passed and found.problem is not None and named in found.problem


def test_logits_fail_below_the_share_of_equal_tokens() -> None:
    limits = KINDS["float32"]
    assert not check_logits("graph", replace(GOOD, top1=limits.top1 - 0.001), limits).passed


@pytest.mark.parametrize("sign", [1, -1])
def test_perplexity_fails_in_both_directions(sign: int) -> None:
    limit = KINDS["int8"].perplexity
    inside = replace(GOOD, perplexity=(10.0, 10 * (1 + sign * limit * 0.99)))
    outside = replace(GOOD, perplexity=(10.0, 10 * (1 + sign * limit * 1.01)))
    assert check_perplexity(inside, KINDS["int8"]).passed
    assert not check_perplexity(outside, KINDS["int8"]).passed


def test_settings_that_do_not_enter_the_arithmetic_may_differ() -> None:
    assert check_settings(CONFIG, replace(CONFIG, max_positions=99, eos_ids=(5,))).passed
    assert check_settings(
        replace(CONFIG, windows=(99, 99)), replace(CONFIG, max_positions=99)
    ).passed
    assert not check_settings(replace(CONFIG, windows=(98, 98)), CONFIG).passed
    found = check_settings(CONFIG, replace(CONFIG, rope_theta=500000.0))
    assert found.problem == "rope_theta is 500000.0 in the export and 10000.0 in the source"


def test_first_layer_is_the_first_that_parts() -> None:
    limits = KINDS["float32"]
    found = first_layer(Program(), Program(offset=0.1), [1, 2, 3], limits)
    assert found == "layer 1: its output differs by 0.05 of its norm"
    same = first_layer(Program(), Program(), [1, 2, 3], limits)
    assert same is not None and same.startswith("no layer: none differs by more than 1e-05")
    assert first_layer(Program(), Program(offset=np.nan), [1], limits) is not None
