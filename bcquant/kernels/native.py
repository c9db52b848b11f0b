"""The compiled kernels, typed: which tier runs, packed weights, and the operations over them.

Calls check dtypes, shapes and strides, release the GIL, write into arrays of the caller and
allocate nothing. What each computes is in `bcquant.kernels.reference` and `reference_ops`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from bcquant.errors import KernelError

try:
    from bcquant.kernels import _native
except ImportError as error:
    raise KernelError(
        f"bcquant.kernels._native cannot be loaded ({error}); install bcquant again with a C++17 "
        "compiler and Cython at hand (pip install .)"
    ) from error

from bcquant.kernels._native import (
    Context,
    KvCache,
    NativeDecoder,
    PackedWeight,
    Pool,
    add,
    argmax,
    attend,
    embed,
    open_packed,
    pack,
    pack_f16,
    rmsnorm,
    rope,
    silu_mul,
    softmax,
    tiers,
)

__all__ = [
    "Context",
    "KvCache",
    "NativeDecoder",
    "PackedWeight",
    "Pool",
    "PRECISIONS",
    "KV_TYPES",
    "active_tier",
    "context",
    "tiers",
    "open_packed",
    "pack",
    "pack_f16",
    "linear",
    "embed",
    "rmsnorm",
    "rope",
    "silu_mul",
    "add",
    "softmax",
    "argmax",
    "attend",
    "kv_cache",
]

F32Array = npt.NDArray[np.float32]

LOG = logging.getLogger(__name__)

# How a linear layer treats its activations: float32; int8 with a scale for each token and group of
# at most 128 columns; int8 with one scale a token.
PRECISIONS = {
    "exact": _native.EXACT,
    "int8": _native.INT8,
    "int8_token": _native.INT8_TOKEN,
}
KV_TYPES = {"f32": _native.KV_F32, "f16": _native.KV_F16, "int8": _native.KV_INT8}


@cache
def context(num_threads: int = 1, tier: str | None = None) -> Context:
    """The kernels of a tier on a pool of threads; one for each pair, made at the first call.

    Args:
        num_threads: 1 .. 256.
        tier: a name of `tiers()`; None = the environment's BCQ_FORCE_TIER, else this CPU's best.
    Raises:
        KernelError: no such tier, or this CPU lacks it. Never another tier instead.
    """
    made = Context(Pool(num_threads), tier)
    _announce(made.tier)
    return made


def active_tier() -> str:
    """The tier that runs where none is asked for.

    Raises:
        KernelError: BCQ_FORCE_TIER names no tier of this build and CPU.
    """
    return context().tier


@cache
def _announce(tier: str) -> None:
    LOG.info("kernel tier: %s", tier)


def linear(
    context: Context,
    weights: Sequence[PackedWeight],
    x_MK: F32Array,
    ys_MN: Sequence[F32Array],
    precision: str = "exact",
    accumulate: bool = False,
) -> None:
    """y_i = x @ W_i.T, or += with `accumulate`, for 1 .. 8 weights of one K and group size.

    Args:
        x_MK: float32, contiguous rows; M may be 0.
        ys_MN: one result a weight, float32, contiguous rows; they share memory with nothing.
        precision: a key of `PRECISIONS`. Float16 weights are always computed exactly.
    Raises:
        ShapeError: an array does not fit.
        KernelError: unknown precision, or the kernels refuse the weights.
    """
    _native.linear(context, weights, x_MK, ys_MN, _code(PRECISIONS, precision), accumulate)


def kv_cache(kv_type: str, num_kv_heads: int, head_dim: int, capacity: int) -> KvCache:
    """An empty cache of one layer.

    Args:
        kv_type: a key of `KV_TYPES`.
        head_dim: a multiple of 16, at most 256.
        capacity: positions, a multiple of 16.
    Raises:
        KernelError: unknown type, or a size that does not fit.
    """
    return KvCache(_code(KV_TYPES, kv_type), num_kv_heads, head_dim, capacity)


def _code(table: dict[str, int], name: str) -> int:
    if name not in table:
        raise KernelError(f"{name!r} is not one of {', '.join(table)}")
    return table[name]
