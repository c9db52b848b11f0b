"""The solver's inner loops in C++ (csrc/solver), called through ctypes.

Each call covers a run of rows; rows are independent, so calls are spread over threads and the
result does not depend on how many there are.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels.shared_library import load_library

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]

MODULE = "bcquant.kernels._solver"
MAX_BLOCK = 256  # BCQ_MAX_BLOCK
ROW_STEP = 32  # rows that the C++ side works on at once; shares are multiples of it

_POINTER, _I64, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bcq_search_grid": (
        _POINTER, _I64, _I64, _POINTER, _I64, _I32, _I32, _I32, _POINTER, _POINTER,
    ),
    "bcq_round_block": (
        _POINTER, _POINTER, _POINTER, _I64, _POINTER, _I64, _I64, _POINTER, _POINTER, _POINTER,
        _I32, _I64, _I64,
    ),
    "bcq_descend_block": (
        _POINTER, _POINTER, _POINTER, _I64, _POINTER, _I64, _I64, _POINTER, _POINTER, _I32,
        _POINTER, _I64, _I64,
    ),
    "bcq_refit_scale": (
        _POINTER, _POINTER, _POINTER, _I64, _POINTER, _I64, _I64, _POINTER, _POINTER, _POINTER,
        _I64, _I64,
    ),
}  # fmt: skip


def search_grid(
    weight_NK: F32Array,
    cost_K: F32Array,
    group_width: int,
    max_code: int,
    symmetric: bool,
    num_ratios: int,
    num_threads: int,
) -> tuple[F32Array, F32Array]:
    """Scales and zeros of least weighted error; the contract is in csrc/include/bcq/solver.h.

    Args:
        weight_NK: C-contiguous, shape (N, K).
        cost_K: > 0, shape (K,).
    Returns:
        scales (float16 values) and zeros (integers), float32, each (N, G).
    Raises:
        ShapeError: dtypes, shapes or layout do not fit.
        KernelError: the extension is not built, or refuses a size.
    """
    _check("weight", weight_NK, 2)
    _check("cost", cost_K, 1)
    n, k = weight_NK.shape
    if cost_K.shape != (k,):
        raise ShapeError(f"cost has shape {cost_K.shape}; ({k},) is needed")
    groups = -(-k // group_width)
    scales, zeros = np.empty((n, groups), np.float32), np.empty((n, groups), np.float32)

    def run(first: int, last: int) -> int:
        return int(
            _library().bcq_search_grid(
                weight_NK[first:].ctypes.data, last - first, k, cost_K.ctypes.data, group_width,
                max_code, int(symmetric), num_ratios,
                scales[first:].ctypes.data, zeros[first:].ctypes.data,
            )
        )  # fmt: skip

    _spread("bcq_search_grid", run, n, num_threads)
    return scales, zeros


def round_block(
    work_KR: F32Array,
    errors_KR: F32Array,
    codes_KR: npt.NDArray[np.uint8],
    upper_KK: F32Array,
    group_of_K: npt.NDArray[np.int32],
    scales_GR: F32Array,
    zeros_GR: F32Array,
    max_code: int,
    num_threads: int,
) -> None:
    """Round a block of columns in turn; the contract is in csrc/include/bcq/solver.h.

    Args:
        work_KR: the block's columns, rows contiguous, shape (k, R); destroyed.
        errors_KR, codes_KR: results, shape (k, R).
        upper_KK: the block's corner of U, shape (k, k).
        group_of_K: row of `scales_GR` and `zeros_GR` for each column.
    Raises:
        ShapeError: dtypes, shapes or layout do not fit.
        KernelError: the extension is not built, or refuses a size.
    """
    k, r = work_KR.shape
    for name, array in (("work", work_KR), ("errors", errors_KR), ("scales", scales_GR)):
        _check(name, array, 2)
    if errors_KR.shape != (k, r) or codes_KR.shape != (k, r) or upper_KK.shape != (k, k):
        raise ShapeError(
            f"errors {errors_KR.shape}, codes {codes_KR.shape} and upper {upper_KK.shape} do not "
            f"fit a block of {k} columns and {r} rows"
        )
    if scales_GR.shape[1] != r or zeros_GR.shape != scales_GR.shape or len(group_of_K) != k:
        raise ShapeError(f"scales {scales_GR.shape}, zeros {zeros_GR.shape}: (G, {r}) is needed")
    if int(group_of_K.min()) < 0 or int(group_of_K.max()) >= scales_GR.shape[0]:
        raise ShapeError(f"a column's group is outside 0 .. {scales_GR.shape[0] - 1}")
    _check("upper", upper_KK, 2)
    _check_codes(codes_KR)

    def run(first: int, last: int) -> int:
        return int(
            _library().bcq_round_block(
                work_KR.ctypes.data, errors_KR.ctypes.data, codes_KR.ctypes.data, r,
                upper_KK.ctypes.data, k, k, group_of_K.ctypes.data,
                scales_GR.ctypes.data, zeros_GR.ctypes.data, max_code, first, last,
            )
        )  # fmt: skip

    _spread("bcq_round_block", run, r, num_threads)


def descend_block(
    gradient_KR: F32Array,
    errors_KR: F32Array,
    codes_KR: npt.NDArray[np.uint8],
    hessian_KK: F32Array,
    scale_R: F32Array,
    zero_R: F32Array,
    max_code: int,
    gains_R: F64Array,
    num_threads: int,
) -> None:
    """Coordinate descent on columns of one group; the contract is in csrc/include/bcq/solver.h.

    Args:
        gradient_KR, errors_KR, codes_KR: the columns of (Q - W) H, Q - W and the codes, rows
            contiguous, shape (k, R); updated.
        hessian_KK: the columns' corner of H, shape (k, k); its rows may be parts of longer ones.
        scale_R, zero_R: the group's, shape (R,).
        gains_R: float64; each row's fall of the loss is added.
    Raises:
        ShapeError: dtypes, shapes or layout do not fit.
        KernelError: the extension is not built, or refuses a size.
    """
    _check_group(gradient_KR, errors_KR, codes_KR, hessian_KK, scale_R, zero_R, gains_R)
    k, r = gradient_KR.shape

    def run(first: int, last: int) -> int:
        return int(
            _library().bcq_descend_block(
                gradient_KR.ctypes.data, errors_KR.ctypes.data, codes_KR.ctypes.data, r,
                hessian_KK.ctypes.data, hessian_KK.strides[0] // 4, k, scale_R.ctypes.data,
                zero_R.ctypes.data, max_code, gains_R.ctypes.data, first, last,
            )
        )  # fmt: skip

    _spread("bcq_descend_block", run, r, num_threads)


def refit_scale(
    gradient_KR: F32Array,
    errors_KR: F32Array,
    codes_KR: npt.NDArray[np.uint8],
    hessian_KK: F32Array,
    scale_R: F32Array,
    zero_R: F32Array,
    gains_R: F64Array,
    num_threads: int,
) -> None:
    """The best scale of one group for its codes; the contract is in csrc/include/bcq/solver.h.

    Args:
        gradient_KR, codes_KR: as for `descend_block`, all columns of the group; only read.
        errors_KR, scale_R, gains_R: updated.
    Raises:
        ShapeError: dtypes, shapes or layout do not fit.
        KernelError: the extension is not built, or refuses a size.
    """
    _check_group(gradient_KR, errors_KR, codes_KR, hessian_KK, scale_R, zero_R, gains_R)
    k, r = gradient_KR.shape

    def run(first: int, last: int) -> int:
        return int(
            _library().bcq_refit_scale(
                gradient_KR.ctypes.data, errors_KR.ctypes.data, codes_KR.ctypes.data, r,
                hessian_KK.ctypes.data, hessian_KK.strides[0] // 4, k, scale_R.ctypes.data,
                zero_R.ctypes.data, gains_R.ctypes.data, first, last,
            )
        )  # fmt: skip

    _spread("bcq_refit_scale", run, r, num_threads)


def _check_group(
    gradient_KR: F32Array,
    errors_KR: F32Array,
    codes_KR: npt.NDArray[np.uint8],
    hessian_KK: F32Array,
    scale_R: F32Array,
    zero_R: F32Array,
    gains_R: F64Array,
) -> None:
    for name, array, rank in (
        ("gradient", gradient_KR, 2), ("errors", errors_KR, 2), ("scale", scale_R, 1),
        ("zero", zero_R, 1),
    ):  # fmt: skip
        _check(name, array, rank)
    k, r = gradient_KR.shape
    if errors_KR.shape != (k, r) or codes_KR.shape != (k, r):
        raise ShapeError(f"errors {errors_KR.shape}, codes {codes_KR.shape}: ({k}, {r}) is needed")
    if scale_R.shape != (r,) or zero_R.shape != (r,) or gains_R.shape != (r,):
        raise ShapeError(
            f"scale {scale_R.shape}, zero {zero_R.shape}, gains {gains_R.shape}: ({r},) is needed"
        )
    _check_codes(codes_KR)
    if gains_R.dtype != np.float64 or not gains_R.flags.c_contiguous:
        raise ShapeError(f"gains are {gains_R.dtype}; C-contiguous float64 is needed")
    if hessian_KK.dtype != np.float32 or hessian_KK.shape != (k, k) or hessian_KK.strides[1] != 4:
        raise ShapeError(
            f"hessian is {hessian_KK.dtype}{list(hessian_KK.shape)}; "
            f"float32 ({k}, {k}) with contiguous rows is needed"
        )


def _check(name: str, array: npt.NDArray[Any], rank: int) -> None:
    if array.dtype != np.float32 or array.ndim != rank or not array.flags.c_contiguous:
        raise ShapeError(
            f"{name} is {array.dtype}{list(array.shape)}; "
            f"C-contiguous float32 of rank {rank} is needed"
        )


def _check_codes(codes_KR: npt.NDArray[Any]) -> None:
    if codes_KR.dtype != np.uint8 or not codes_KR.flags.c_contiguous:
        raise ShapeError(f"codes are {codes_KR.dtype}; C-contiguous uint8 is needed")


def _spread(name: str, run: Callable[[int, int], int], num_rows: int, num_threads: int) -> None:
    """Run shares of the rows on threads; the GIL is released inside the calls."""
    steps = -(-num_rows // ROW_STEP)
    shares = max(1, min(num_threads, steps))
    bounds = [min(num_rows, steps * i // shares * ROW_STEP) for i in range(shares + 1)]
    bounds[-1] = num_rows
    spans = list(itertools.pairwise(bounds))
    statuses = (
        [run(*spans[0])] if shares == 1 else list(_pool(shares).map(lambda s: run(*s), spans))
    )
    if any(statuses):
        raise KernelError(f"{name}: refused its arguments (status {max(statuses)})")


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="bcq-solver")


@cache
def _library() -> ctypes.CDLL:
    library = load_library(MODULE)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library
