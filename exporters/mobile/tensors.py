"""How each tensor of a model is stored: blobs and vectors, their sizes, bytes and errors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bcquant.errors import ExportError
from bcquant.io.dtypes import RawTensor
from bcquant.io.packed_blob import BlobShape
from bcquant.models.architecture import HEAD
from bcquant.models.source import ModelSource, Rows
from bcquant.runtime.native_weights import pack_module
from bcquant.spec.export_plan import TensorPlan
from bcquant.spec.quant_format import QuantFormat

# Types whose every value float16 holds; float32 holds all but float64.
_HALVES = ("F16", "F8_E4M3", "F8_E5M2")
_VALUES_AT_ONCE = 4 << 20


def is_matrix(source: ModelSource, name: str) -> bool:
    """Whether a tensor becomes a blob."""
    return len(source.shape(name)) == 2


def blob_shape(source: ModelSource, name: str) -> BlobShape:
    """The blob that a matrix becomes; only headers are looked at."""
    n, k = source.shape(name)
    fmt = _format(source, name)
    if fmt is None:
        return BlobShape(n, k, 16, k)
    return BlobShape(n, k, fmt.bits, fmt.group_width(k), not fmt.symmetric)


def num_bytes(source: ModelSource, name: str) -> int:
    """Of a tensor in the package."""
    if is_matrix(source, name):
        return blob_shape(source, name).num_bytes
    return 4 * source.shape(name)[0]


def tensor_bytes(source: ModelSource, name: str) -> bytes:
    """A tensor as the package holds it.

    Raises:
        CheckpointError: it cannot be read.
    """
    if is_matrix(source, name):
        return pack_module(source, name.removesuffix(".weight")).tobytes()
    return np.asarray(source.weight(name), "<f4").tobytes()


def first_plan(source: ModelSource, name: str) -> TensorPlan:
    """A tensor's row of the plan from headers alone; error None = `measured` finds it."""
    size = num_bytes(source, name)
    if not is_matrix(source, name):
        return TensorPlan(name, "F32", size, None if _dtype(source, name) == "F64" else 0.0)
    fmt = _format(source, name)
    if fmt is None:
        is_exact = _dtype(source, name) in _HALVES and not _is_folded(source, name)
        return TensorPlan(name, "F16", size, 0.0 if is_exact else None)
    grid = "whole rows" if fmt.group_size == -1 else f"groups of {fmt.group_size}"
    stored_as = f"{fmt.bits}-bit, {grid}{'' if fmt.symmetric else ', zeros'}"
    return TensorPlan(name.removesuffix(".weight"), stored_as, size)


def measured(source: ModelSource, name: str) -> TensorPlan:
    """The same with its error, after reading the whole tensor.

    Raises:
        ExportError: a value is not finite or beyond what it is stored as.
        CheckpointError: it cannot be read.
    """
    plan = first_plan(source, name)
    if is_matrix(source, name) and _format(source, name) is not None:
        source.quantized(
            name.removesuffix(".weight")
        )  # refuses codes, zeros and scales that are none
        return plan
    dtype, largest = ("float16", 65504.0) if is_matrix(source, name) else ("float32", 3.4028e38)
    change, total = 0.0, 0.0
    for exact in _chunks(source, name):
        with np.errstate(over="ignore"):
            stored = exact.astype(dtype).astype(np.float64)
        if not np.isfinite(stored).all():
            finite = np.isfinite(exact)
            worst = np.abs(exact).max() if finite.all() else exact[~finite][0]
            raise ExportError(
                f"{name} holds {worst:.5g}, which {dtype} ({largest:.5g} at most) does "
                "not hold; correct the checkpoint, or quantize it first"
            )
        change += float(np.square(stored - exact).sum())
        total += float(np.square(exact).sum())
    error = float(np.sqrt(change / total)) if change else 0.0
    return TensorPlan(plan.name, plan.stored_as, plan.num_bytes, error)


def _chunks(source: ModelSource, name: str) -> Iterator[npt.NDArray[np.float64]]:
    """Values at full precision, some rows at a time."""
    shape = source.shape(name)
    step = max(1, _VALUES_AT_ONCE // int(np.prod(shape[1:])))
    for first in range(0, shape[0], step):
        yield _exact(source, name, (first, min(first + step, shape[0]))).astype(np.float64)


def _exact(source: ModelSource, name: str, rows: Rows) -> npt.NDArray[np.floating]:
    if _dtype(source, name) != "F64" or _is_folded(source, name):
        return source.weight(name, rows)
    raw = source.raw(name, rows)
    assert not isinstance(raw, RawTensor), name
    return raw


def _dtype(source: ModelSource, name: str) -> str:
    return source.stored_dtype(name)


def _format(source: ModelSource, name: str) -> QuantFormat | None:
    """A matrix's integers; None for floats, and for a NormHead, which is folded as floats."""
    return None if _is_folded(source, name) else source.format_of(name.removesuffix(".weight"))


def _is_folded(source: ModelSource, name: str) -> bool:
    return name == HEAD and source.config.norm_head
