"""Round-to-nearest grids: scales and zeros from weights, weights to codes, codes to weights.

W[n,k] = scales[n, k//g] * (codes[n,k] - zeros[n, k//g]). Scales are rounded to float16 before codes
are found, because the stored scale is the one that a reader multiplies with. The last group is
shorter when g does not divide K. Rows are worked in blocks, so that temporaries stay small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bcquant.errors import ShapeError, SolverError
from bcquant.quant.tensors import F16Array, F32Array, QuantizedTensor, U8Array
from bcquant.spec.quant_format import QuantFormat

T = TypeVar("T", bound=np.generic)

_BLOCK_VALUES = 1 << 21
_F16_MAX = float(np.finfo(np.float16).max)


def absmax_scales(
    weight_NK: F32Array, fmt: QuantFormat, signed: bool = False
) -> tuple[F16Array, U8Array]:
    """Symmetric grid whose range covers the largest magnitude of each group.

    Args:
        weight_NK: float32, shape (N, K), finite.
        fmt: bits and group size are used.
        signed: False: scale = 2 absmax / (2^bits - 1) > 0, both ends miss by half a step, as GPTQ
            does. True: the value of largest magnitude falls exactly on code 0, so the scale has the
            opposite sign of that value and is absmax / 2^(bits-1).
    Returns:
        scales_NG float16 and zeros_NG uint8, all 2^(bits-1); an all-zero group gets scale 1.
    Raises:
        ShapeError: not a float32 matrix. SolverError: a weight is not finite, or a scale
            overflows float16.
    """
    _check_weight(weight_NK)
    low_NG, high_NG = _group_min_max(weight_NK, fmt)
    absmax_NG = np.maximum(-low_NG, high_NG)
    if signed:
        sign_NG = np.where(-low_NG > high_NG, np.float32(1), np.float32(-1))
        scales_NG, _ = _to_f16(sign_NG * (absmax_NG / np.float32(fmt.symmetric_zero)))
    else:
        scales_NG, _ = _to_f16(absmax_NG * np.float32(2 / fmt.max_code))
    return scales_NG, np.full(scales_NG.shape, fmt.symmetric_zero, np.uint8)


def minmax_scales(weight_NK: F32Array, fmt: QuantFormat) -> tuple[F16Array, U8Array]:
    """Asymmetric grid that covers the minimum, the maximum and 0 of each group.

    Every zero is >= 1, so GPTQ v1 (which stores zero - 1) can hold it. A group that would need
    zero 0, one without negative values, gets a negative scale and zero 2^bits - 1 instead: the same
    levels, counted from the other end, at no loss.

    Args:
        weight_NK: float32, shape (N, K), finite.
        fmt: bits and group size are used.
    Returns:
        scales_NG float16 and zeros_NG uint8, 1 .. 2^bits - 1; an all-zero group gets scale 1 and
        zero 2^(bits-1).
    Raises:
        ShapeError: not a float32 matrix. SolverError: a weight is not finite, or a scale
            overflows float16.
    """
    _check_weight(weight_NK)
    low_NG, high_NG = _group_min_max(weight_NK, fmt)
    top = fmt.max_code
    # Halves first: high - low may overflow float32 for weights that the check below refuses anyway.
    scales_NG, dead_NG = _to_f16((high_NG / 2 - low_NG / 2) * np.float32(2 / top))
    zeros_f_NG = np.minimum(np.rint(-low_NG / scales_NG.astype(np.float32)), np.float32(top))
    # Zero 0 is counted from the other end: s * (c - 0) == -s * ((top - c) - top).
    flip_NG = (zeros_f_NG < 1) & ~dead_NG
    scales_NG = np.where(flip_NG, -scales_NG, scales_NG)
    zeros_f_NG[flip_NG] = top
    zeros_f_NG[dead_NG] = fmt.symmetric_zero
    return scales_NG, zeros_f_NG.astype(np.uint8)


def find_grid(weight_NK: F32Array, fmt: QuantFormat) -> tuple[F16Array, U8Array]:
    """`absmax_scales` for a symmetric format, `minmax_scales` for an asymmetric one."""
    if fmt.symmetric:
        return absmax_scales(weight_NK, fmt)
    return minmax_scales(weight_NK, fmt)


def encode(
    weight_NK: F32Array, scales_NG: F16Array, zeros_NG: U8Array, fmt: QuantFormat
) -> U8Array:
    """Nearest code of every weight: clip(round(W / scale) + zero, 0, 2^bits - 1), ties to even.

    Args:
        weight_NK: float32, shape (N, K), finite.
        scales_NG: float16, any sign; where it is 0 the code is the zero.
        zeros_NG: uint8.
        fmt: bits and group size.
    Returns:
        codes_NK uint8, shape (N, K).
    Raises:
        ShapeError: shapes or dtypes disagree. SolverError: a weight is not finite.
    """
    _check_weight(weight_NK)
    n, k = weight_NK.shape
    want = (n, fmt.num_groups(k))
    for name, array, dtype in (("scales", scales_NG, np.float16), ("zeros", zeros_NG, np.uint8)):
        if array.shape != want or array.dtype != dtype:
            raise ShapeError(
                f"{name} are {array.dtype}{list(array.shape)}; {np.dtype(dtype)}{list(want)} is "
                f"needed for a weight {[n, k]}"
            )
    codes_NK = np.empty((n, k), np.uint8)
    for rows in _row_blocks(n, k):
        scales = scales_NG[rows].astype(np.float32)
        dead = scales == 0
        steps = weight_NK[rows] / _expand(np.where(dead, np.float32(1), scales), fmt, k)
        if dead.any():
            steps[_expand(dead, fmt, k)] = 0
        np.rint(steps, out=steps)
        steps += _expand(zeros_NG[rows].astype(np.float32), fmt, k)
        codes_NK[rows] = np.clip(steps, 0, fmt.max_code, out=steps)
    return codes_NK


def quantize_nearest(weight_NK: F32Array, fmt: QuantFormat) -> QuantizedTensor:
    """Round a weight to the grid of `find_grid`: the baseline that every solver must beat.

    Args:
        weight_NK: float32, shape (N, K), finite.
    Raises:
        ShapeError, SolverError: as `find_grid`.
    """
    scales_NG, zeros_NG = find_grid(weight_NK, fmt)
    return QuantizedTensor(encode(weight_NK, scales_NG, zeros_NG, fmt), scales_NG, zeros_NG, fmt)


def dequantize(q: QuantizedTensor, rows: tuple[int, int] | None = None) -> F32Array:
    """Weights of a quantized tensor.

    Args:
        rows: half-open range of output rows; None = all.
    Returns:
        float32, shape (rows, K). Exact: an 11-bit scale times a 9-bit difference fits float32.
    Raises:
        ShapeError: the row range is not inside the tensor.
    """
    start, stop = (0, q.out_features) if rows is None else rows
    if not 0 <= start <= stop <= q.out_features:
        raise ShapeError(f"rows {start}:{stop} are asked of a tensor with {q.out_features} rows")
    k = q.in_features
    weight_NK = np.empty((stop - start, k), np.float32)
    for block in _row_blocks(stop - start, k):
        source = slice(block.start + start, block.stop + start)
        out = weight_NK[block]
        zeros = _expand(q.zeros_NG[source].astype(np.float32), q.format, k)
        np.subtract(q.codes_NK[source], zeros, out=out)
        out *= _expand(q.scales_NG[source].astype(np.float32), q.format, k)
    return weight_NK


def _check_weight(weight_NK: F32Array) -> None:
    if weight_NK.ndim != 2 or weight_NK.dtype != np.float32 or not weight_NK.size:
        raise ShapeError(
            f"a weight is {weight_NK.dtype}{list(weight_NK.shape)}; a float32 matrix (N, K) with "
            "N, K > 0 is needed"
        )
    for rows in _row_blocks(*weight_NK.shape):
        finite = np.isfinite(weight_NK[rows])
        if not finite.all():
            row, column = (int(i) for i in np.argwhere(~finite)[0])
            raise SolverError(
                f"weight[{row + rows.start}, {column}] is {weight_NK[rows][row, column]}; finite "
                "weights are needed, the checkpoint is damaged"
            )


def _row_blocks(n: int, k: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // k)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _expand(per_group_NG: npt.NDArray[T], fmt: QuantFormat, k: int) -> npt.NDArray[T]:
    """(N, G) -> (N, K): each group's value over its columns."""
    if per_group_NG.shape[1] == 1:
        return per_group_NG
    return np.repeat(per_group_NG, fmt.group_width(k), axis=1)[:, :k]


def _group_min_max(weight_NK: F32Array, fmt: QuantFormat) -> tuple[F32Array, F32Array]:
    """Per group min(0, min W) <= 0 and max(0, max W) >= 0, float32 (N, G)."""
    starts = np.arange(0, weight_NK.shape[1], fmt.group_width(weight_NK.shape[1]))
    low_NG = np.minimum(np.minimum.reduceat(weight_NK, starts, axis=1), np.float32(0))
    high_NG = np.maximum(np.maximum.reduceat(weight_NK, starts, axis=1), np.float32(0))
    return low_NG, high_NG


def _to_f16(scales_NG: npt.NDArray[np.floating[Any]]) -> tuple[F16Array, npt.NDArray[np.bool_]]:
    """Float16 scales and which groups are dead: scale 0, or below float16, replaced by 1."""
    largest = float(np.abs(scales_NG).max())
    if largest > _F16_MAX:
        raise SolverError(
            f"a group needs the scale {largest:.4g}; float16 holds at most {_F16_MAX:.0f}. "
            "Weights this large are not a trained layer; check the checkpoint"
        )
    rounded_NG = scales_NG.astype(np.float16)
    dead_NG = rounded_NG == 0
    rounded_NG[dead_NG] = 1
    return rounded_NG, dead_NG
