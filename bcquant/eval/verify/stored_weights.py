"""The weights inside an export, compared with the source's tensor by tensor.

Integers and scales are compared in their canonical meaning W = scale * (code - zero), whatever the
export calls its codes and however often it repeats a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import F32Array
from bcquant.io.checkpoint import bf16_to_f32, f32_to_bf16
from bcquant.models.source import ModelSource
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.model_config import ModelConfig

Rows = tuple[int, int]
_VALUES_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Integers:
    """A quantized weight as W[n,k] = scales[n, k // width] * levels[n,k].

    Attributes:
        levels_NK: int16, code - zero.
        scales_NG: float32.
        width: columns that share a scale.
        is_exact: the formula holds exactly; False where a block's offset was rounded (Q4_1).
    """

    levels_NK: npt.NDArray[np.int16]
    scales_NG: F32Array
    width: int
    is_exact: bool = True


@dataclass(frozen=True)
class TensorDiff:
    """One tensor of an export beside the source's.

    Attributes:
        changed: share of its integers (of its values, if it is stored as floats) that differ.
        scale_change: largest relative difference of a scale; 0.0 for floats.
        error: |export - source| / |source|, Frobenius norms of the values.
        is_rounded: every value is the source's, rounded to the float type that it is stored in.
    """

    name: str
    stored_as: str
    changed: float = 0.0
    scale_change: float = 0.0
    error: float = 0.0
    is_rounded: bool = True

    @property
    def is_equal(self) -> bool:
        """Nothing differs."""
        return self.changed == 0 and self.scale_change == 0 and self.error == 0

    def is_accepted(self, allows_rounding: bool, max_error: float) -> bool:
        """Whether it may stand for the source's.

        Args:
            allows_rounding: to the float type of the export.
            max_error: of the whole tensor, that the user accepts.
        """
        is_same = self.is_equal or (allows_rounding and self.is_rounded)
        return is_same or 0 < self.error <= max_error


class StoredWeights(Protocol):
    """The tensors of an open export under canonical names.

    Attributes:
        path: of the export.
        config: what the export says of the model; None if it only has a graph.
    """

    path: Path
    config: ModelConfig | None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None if the export has none of that name."""

    def stored_as(self, name: str) -> str:
        """How a tensor is held, e.g. "Q4_0"."""

    def integers(self, module: str) -> Integers | None:
        """A quantized weight, None if it is stored as floats."""

    def values(self, name: str, rows: Rows) -> F32Array:
        """Rows of a tensor in float32."""

    def close(self) -> None:
        """Release the files."""


def integers_of(q: QuantizedTensor) -> Integers:
    """A canonical quantized tensor as levels."""
    width = q.format.group_width(q.in_features)
    zeros = _spread(q.zeros_NG.astype(np.int16), width, q.in_features)
    levels = q.codes_NK.astype(np.int16) - zeros
    return Integers(levels, q.scales_NG.astype(np.float32), width)


def check_same_model(source: ModelSource, stored: StoredWeights) -> None:
    """Refuse to compare different models.

    Raises:
        CheckpointError: a tensor is missing in the export or has another shape.
    """
    for name in source.names():
        want, found = source.shape(name), stored.shape(name)
        if found != want:
            said = "is missing" if found is None else f"has shape {list(found)}"
            raise CheckpointError(
                f"{stored.path}: {name} {said}; the source has {list(want)}: this is an export of "
                "another model"
            )


def compare_weights(
    source: ModelSource, stored: StoredWeights, progress: Callable[[str, int, int], None]
) -> list[TensorDiff]:
    """Every tensor of the model, in model order.

    Args:
        progress: told (name, tensors done, tensors).
    Raises:
        CheckpointError: a tensor of either side cannot be read.
    """
    names = source.names()
    found = []
    for i, name in enumerate(names):
        progress(name, i, len(names))
        found.append(_compare(source, stored, name))
    return found


def _compare(source: ModelSource, stored: StoredWeights, name: str) -> TensorDiff:
    module = name.removesuffix(".weight")
    has_integers = name.endswith(".weight") and source.stored_dtype(name) == "quantized"
    theirs = stored.integers(module) if has_integers else None
    q = source.quantized(module) if theirs is not None else None
    if theirs is None or q is None:
        return _value_diff(source, stored, name)
    ours = integers_of(q)
    changed, scale_change = _integer_diff(ours, theirs)
    is_equal = theirs.is_exact and changed == 0 and scale_change == 0
    error = 0.0 if is_equal else _value_diff(source, stored, name).error
    return TensorDiff(name, stored.stored_as(name), changed, scale_change, error, is_equal)


def _integer_diff(ours: Integers, theirs: Integers) -> tuple[float, float]:
    """Share of levels that differ, and the largest relative difference of a scale."""
    k = ours.levels_NK.shape[1]
    changed = float((ours.levels_NK != theirs.levels_NK).mean())
    step = math.gcd(ours.width, theirs.width)
    mine, other = (
        np.repeat(side.scales_NG, side.width // step, axis=1)[:, : -(-k // step)]
        for side in (ours, theirs)
    )
    gap = np.abs(other - mine)
    # A scale of 0 that is no longer 0 has no relative difference; it counts as changed wholly.
    relative = gap / np.where(mine == 0, np.where(gap == 0, 1, gap), np.abs(mine))
    return changed, float(relative.max())


def _value_diff(source: ModelSource, stored: StoredWeights, name: str) -> TensorDiff:
    """Share of values that differ, and the relative error of the whole tensor."""
    shape, dtype = source.shape(name), stored.stored_as(name)
    step = max(1, _VALUES_AT_ONCE // math.prod(shape[1:]))
    num_changed, square_gap, square_norm, is_rounded = 0, 0.0, 0.0, True
    for first in range(0, shape[0], step):
        rows = (first, min(first + step, shape[0]))
        mine, other = source.weight(name, rows), stored.values(name, rows)
        if not bool(np.isfinite(other).all()):
            raise CheckpointError(f"{stored.path}: {name} holds a value that is not finite")
        gap = (other - mine).astype(np.float64)
        num_changed += int(np.count_nonzero(gap))
        square_gap += float((gap * gap).sum())
        square_norm += float(np.square(mine, dtype=np.float64).sum())
        is_rounded = is_rounded and np.array_equal(other, _rounded(mine, dtype))
    error = math.sqrt(square_gap / square_norm) if square_norm else float(square_gap > 0)
    return TensorDiff(name, dtype, num_changed / math.prod(shape), 0.0, error, is_rounded)


def _rounded(values: F32Array, dtype: str) -> F32Array:
    """Values as a float type holds them, in float32."""
    if dtype == "F16":
        with np.errstate(over="ignore"):  # an infinity then differs from what is stored
            return values.astype(np.float16).astype(np.float32)
    return bf16_to_f32(f32_to_bf16(values)) if dtype == "BF16" else values


def _spread(per_group_NG: npt.NDArray[np.int16], width: int, k: int) -> npt.NDArray[np.int16]:
    return np.repeat(per_group_NG, width, axis=1)[:, :k]
