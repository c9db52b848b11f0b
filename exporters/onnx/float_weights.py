"""Tensors that a checkpoint stores as floats: carried over exactly or converted, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bcquant.errors import ExportError
from bcquant.io.checkpoint import RawTensor
from bcquant.models.architecture import HEAD
from bcquant.models.source import ModelSource

from .graph import Array, Weight
from .options import OnnxOptions

_VALUES_AT_ONCE = 8 << 20


def float_dtype(source: ModelSource, name: str, options: OnnxOptions) -> str:
    """Type of a float matrix in the export.

    The checkpoint's own, so that nothing is rounded; float16 everywhere with --float16 (browsers'
    GPUs have no bfloat16). Block types of GGUF become float32, which holds their values exactly,
    and so does a NormHead, whose normalised rows are no float16 numbers.
    """
    if options.float16:
        return "F16"
    if name == HEAD and source.config.norm_head:
        return "F32"
    stored = source.stored_dtype(name)
    return stored if stored in ("F16", "BF16") else "F32"


def is_exact(source: ModelSource, name: str, dtype: str) -> bool:
    """Whether a tensor's values surely survive as `dtype`; else they must be read to know."""
    return dtype == "F32" or _is_copy(source, name, dtype)


def float_weight(source: ModelSource, name: str, dtype: str) -> Weight:
    """A float tensor as an initializer of its canonical name and shape; nothing is read here.

    Raises:
        ExportError: (when written) a value is not finite or does not fit into float16.
    """

    def parts() -> Iterator[Array]:
        for rows in row_ranges(source.shape(name)):
            if _is_copy(source, name, dtype):
                stored = source.raw(name, rows)
                yield stored.data if isinstance(stored, RawTensor) else stored
            else:
                yield _converted(source.weight(name, rows), dtype, name)

    return Weight(name, dtype, source.shape(name), parts)


def conversion_error(source: ModelSource, name: str, dtype: str) -> float:
    """|converted - source| / |source| over the whole tensor.

    Raises:
        ExportError: a value is not finite or does not fit into float16.
    """
    difference = total = 0.0
    for rows in row_ranges(source.shape(name)):
        values = source.weight(name, rows)
        converted = _converted(values, dtype, name).astype(np.float32)
        difference += squared(converted - values)
        total += squared(values)
    return math.sqrt(difference / total) if total else 0.0


def row_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Runs of rows that are read at a time."""
    step = max(1, _VALUES_AT_ONCE // math.prod(shape[1:]))
    for first in range(0, shape[0], step):
        yield first, min(first + step, shape[0])


def squared(values: Array) -> float:
    """Sum of squares in float64."""
    flat = values.reshape(-1).astype(np.float64)
    return float(flat @ flat)


def _is_copy(source: ModelSource, name: str, dtype: str) -> bool:
    is_folded = name == HEAD and source.config.norm_head
    return source.stored_dtype(name) == dtype and not is_folded


def _converted(values: Array, dtype: str, name: str) -> Array:
    if dtype == "F32":
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    if not bool(np.isfinite(narrow).all()):
        raise ExportError(
            f"{name}: a value of {float(np.abs(values).max()):.4g} does not fit into float16; "
            "export without --float16"
        )
    return narrow
