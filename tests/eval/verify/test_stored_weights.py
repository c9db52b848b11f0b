"""Weights of an export against the source's, with both sides made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bcquant.errors import CheckpointError
from bcquant.eval.verify.stored_weights import (
    Integers,
    TensorDiff,
    check_same_model,
    compare_weights,
    integers_of,
)
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.spec.quant_format import QuantFormat

NAME, NORM = "a.weight", "norm.weight"


class Source:
    """A `ModelSource` of one quantized matrix and one vector."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        weight = rng.standard_normal((6, 64)).astype(np.float32)
        self.q = quantize_nearest(weight, QuantFormat(4, 32, symmetric=False))
        self.norm = rng.standard_normal(8).astype(np.float32)

    def names(self) -> list[str]:
        return [NAME, NORM]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weight(name).shape

    def stored_dtype(self, name: str) -> str:
        return "quantized" if name == NAME else "F32"

    def quantized(self, module: str) -> Any:
        return self.q

    def weight(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        values = dequantize(self.q) if name == NAME else self.norm
        return values if rows is None else values[slice(*rows)]


class Stored:
    """`StoredWeights` of what a test puts in."""

    path, config = Path("export"), None

    def __init__(self, integers: Integers | None, norm: Any, dtype: str = "F32") -> None:
        self.found, self.norm, self.dtype = integers, norm, dtype

    def shape(self, name: str) -> tuple[int, ...] | None:
        return (6, 64) if name == NAME else self.norm.shape

    def stored_as(self, name: str) -> str:
        return "blocks" if name == NAME else self.dtype

    def integers(self, module: str) -> Integers | None:
        return self.found

    def values(self, name: str, rows: tuple[int, int]) -> Any:
        if name == NORM:
            return self.norm[slice(*rows)]
        assert self.found is not None
        scales = np.repeat(self.found.scales_NG, self.found.width, axis=1)
        return (self.found.levels_NK * scales)[slice(*rows)].astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def source() -> Any:
    return Source()


def compare(source: Any, stored: Stored) -> list[TensorDiff]:
    return compare_weights(cast(Any, source), stored, lambda what, done, total: None)


def test_repeated_scales_are_the_same_weight(source: Any) -> None:
    ours = integers_of(source.q)
    narrow = Integers(ours.levels_NK, np.repeat(ours.scales_NG, 2, axis=1), 16)
    assert all(diff.is_equal for diff in compare(source, Stored(narrow, source.norm)))


def test_levels_are_code_minus_zero(source: Any) -> None:
    ours = integers_of(source.q)
    values = ours.levels_NK * np.repeat(ours.scales_NG, 32, axis=1)
    assert np.array_equal(values, dequantize(source.q))  # both exact in float32


def test_one_level_and_one_scale_are_measured(source: Any) -> None:
    ours = integers_of(source.q)
    levels, scales = ours.levels_NK.copy(), ours.scales_NG.copy()
    levels[2, 40] += 1
    scales[5, 0] *= 2
    diff = compare(source, Stored(Integers(levels, scales, 32), source.norm))[0]
    assert (diff.changed, diff.scale_change) == (1 / (6 * 64), 1.0)
    assert diff.error > 0 and not diff.is_rounded


def test_values_are_compared_where_a_minimum_was_rounded(source: Any) -> None:
    ours = integers_of(source.q)
    inexact = Integers(ours.levels_NK, ours.scales_NG, 32, is_exact=False)
    assert compare(source, Stored(inexact, source.norm))[0].error == 0


def test_a_scale_of_zero_that_is_none_counts_whole(source: Any) -> None:
    ours = integers_of(source.q)
    source.q.scales_NG[0, 0] = 0
    diff = compare(source, Stored(ours, source.norm))[0]
    assert diff.scale_change == 1.0


def test_rounding_to_float16_is_told_from_a_change(source: Any) -> None:
    ours = integers_of(source.q)
    half = source.norm.astype(np.float16).astype(np.float32)
    rounded = compare(source, Stored(ours, half, "F16"))[1]
    assert rounded.is_rounded and not rounded.is_equal
    assert rounded.is_accepted(True, 0.0) and not rounded.is_accepted(False, 0.0)
    half[3] = np.nextafter(np.float16(half[3]), np.float16(9)).astype(np.float32)
    changed = compare(source, Stored(ours, half, "F16"))[1]
    assert not changed.is_rounded and not changed.is_accepted(True, 0.0)


def test_an_accepted_error_has_a_limit() -> None:
    diff = TensorDiff("a", "Q4_1", 0.0, 0.0, 0.01, False)
    assert diff.is_accepted(False, 0.01) and not diff.is_accepted(False, 0.009)


def test_a_value_that_is_not_finite_is_refused(source: Any) -> None:
    norm = source.norm.copy()
    norm[1] = np.inf
    with pytest.raises(CheckpointError, match=r"export: norm\.weight holds a value that is not"):
        compare(source, Stored(integers_of(source.q), norm))


def test_another_shape_is_another_model(source: Any) -> None:
    stored = Stored(integers_of(source.q), source.norm[:4])
    with pytest.raises(CheckpointError, match=r"norm.weight has shape \[4\]; the source has \[8\]"):
        check_same_model(source, stored)
