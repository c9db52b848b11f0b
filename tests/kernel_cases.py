"""Weights, inputs and contexts for tests of the compiled kernels."""

from __future__ import annotations

import numpy as np
import pytest

from bcquant.errors import KernelError
from bcquant.kernels import native
from bcquant.kernels.reference import F32Array, F64Array, Weight

TIERS = native.tiers()


def context_of(tier: str, num_threads: int = 1) -> native.Context:
    """The kernels of a tier; skips the test on a CPU that lacks it."""
    try:
        return native.context(num_threads, tier)
    except KernelError as error:
        pytest.skip(str(error))


def pack(w: Weight) -> native.PackedWeight:
    if w.bits == 16:
        return native.pack_f16(w.codes_NK)
    return native.pack(w.codes_NK, w.scales_NG, w.zeros_NG, w.bits, w.group_size)


def activations(m: int, k: int, seed: int = 0) -> F32Array:
    """Normal values with one column that is 20 times as large."""
    x = np.random.default_rng([seed, m, k]).normal(0, 1, (m, k)).astype(np.float32)
    x[:, k // 3] *= 20
    return x


def linear(
    context: native.Context, w: Weight, x_MK: F32Array, precision: str = "exact"
) -> F32Array:
    """y of the compiled kernels, in memory that held NaN before."""
    y = np.full((len(x_MK), len(w.codes_NK)), np.nan, np.float32)
    native.linear(context, [pack(w)], x_MK, [y], precision)
    return y


def assert_within(found: F32Array, wanted: F32Array, bound: F64Array | float) -> None:
    """Equal where `wanted` is not finite, and elsewhere no farther apart than `bound`."""
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    error = np.abs(found.astype(np.float64) - wanted)[finite]
    limit = np.broadcast_to(bound, wanted.shape)[finite]
    assert np.isfinite(found[finite]).all()
    worst = int(np.argmax(error / limit)) if error.size else -1
    assert (error <= limit).all(), f"off by {error[worst]}, {limit[worst]} is allowed"
