"""Pointwise operations and attention of every tier against the numpy truth."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import TIERS, context_of

from bcquant.kernels import native
from bcquant.kernels import reference_ops as ops

WIDTHS = (1, 7, 16, 33, 64, 100, 576, 1000)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("tier", TIERS)
def test_rmsnorm_equals_the_reference_also_in_place(tier: str) -> None:
    context = context_of(tier)
    for k in WIDTHS:
        x, gain, out = normal(3, k), normal(k, seed=1), np.empty((3, k), np.float32)
        native.rmsnorm(context, x, gain, 1e-6, out)
        # The sum of K squares is off by at most K roundings, its root by half of that.
        np.testing.assert_allclose(out, ops.rmsnorm(x, gain, 1e-6), rtol=k * 2.0**-25 + 3e-7)
        native.rmsnorm(context, x, gain, 1e-6, x)
        np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("tier", TIERS)
def test_rope_equals_the_reference(tier: str) -> None:
    context = context_of(tier)
    for num_heads, head_dim in ((1, 2), (3, 16), (2, 48), (4, 64), (1, 256)):
        x = normal(5, num_heads * head_dim)
        angles = np.random.default_rng(0).uniform(0, 100, (5, head_dim // 2))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        wanted = ops.rope(x, num_heads, cos, sin)
        native.rope(context, x, num_heads, cos, sin)
        # Two products and a sum of values up to 5, each rounded.
        np.testing.assert_allclose(x, wanted, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("tier", TIERS)
def test_silu_mul_equals_the_reference_at_any_size_of_gate(tier: str) -> None:
    context = context_of(tier)
    gate = np.concatenate([np.linspace(-120, 120, 999), [0.0, -0.0, 1e-30]]).astype(np.float32)
    gate, up = gate[None], normal(1, len(gate))
    out = np.empty_like(gate)
    native.silu_mul(context, gate, up, out)
    # exp to 1.1 units in the last place, a sum, a division, a product. Below -87.68 the tiers'
    # exp is infinite or the truth is subnormal: zero is as good.
    np.testing.assert_allclose(out, ops.silu_mul(gate, up), rtol=5e-7, atol=1e-35)
    native.silu_mul(context, gate, up, up)
    np.testing.assert_array_equal(up, out)


@pytest.mark.parametrize("tier", TIERS)
def test_add_adds(tier: str) -> None:
    for k in WIDTHS:
        x, y = normal(2, k), normal(2, k, seed=1)
        wanted = x + y
        native.add(context_of(tier), x, y)
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("tier", TIERS)
def test_softmax_equals_the_reference(tier: str, temperature: float) -> None:
    for k in WIDTHS:
        x = normal(2, k) * 4
        x[0, 1 : k // 2] = -np.inf
        wanted = ops.softmax(x, temperature)
        native.softmax(context_of(tier), x, temperature)
        # An argument of exp of up to 28 / temperature, rounded to float32 three times.
        np.testing.assert_allclose(x, wanted, rtol=28 / temperature * 2.0**-22, atol=1e-30)


@pytest.mark.parametrize("tier", TIERS)
def test_softmax_of_only_minus_infinity_is_zero(tier: str) -> None:
    x = np.full((1, 37), -np.inf, np.float32)
    native.softmax(context_of(tier), x)
    assert (x == 0).all()


@pytest.mark.parametrize("tier", TIERS)
def test_argmax_equals_the_reference(tier: str) -> None:
    context = context_of(tier)
    for k in (*WIDTHS, 5000):
        x = normal(k)
        x[k // 2] = x[k - 1] = x.max()  # the first of two equal ones
        assert native.argmax(context, x) == ops.argmax(x)
        x[k // 2] = np.nan
        assert native.argmax(context, x) == ops.argmax(x)
    assert native.argmax(context, np.full(40, np.nan, np.float32)) == 0
    assert native.argmax(context, np.full(40, -np.inf, np.float32)) == 0


def run_attention(
    context: native.Context, kv_type: str, tokens: int, first: int, window: int, alibi: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(found, wanted) of 6 heads over 2 with D = 48, after `first` positions."""
    heads, kv_heads, dim, total = 6, 2, 48, first + tokens
    q = normal(tokens, heads * dim)
    keys, values = normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)
    slopes = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32) if alibi else None
    cache = native.kv_cache(kv_type, kv_heads, dim, -(-total // 16) * 16)
    cache.append(context, 0, keys[:first], values[:first])
    cache.append(context, first, keys[first:], values[first:])
    out = np.full_like(q, np.nan)
    native.attend(context, cache, q, out, first, 0.14, window, slopes)
    stored = [ops.store_kv(a, kv_type, dim) for a in (keys, values)]
    wanted = ops.attention(q, *stored, heads, kv_heads, first, 0.14, window, slopes)
    return out, wanted


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_attention_equals_the_reference(tier: str, kv_type: str) -> None:
    for tokens, first in ((1, 0), (1, 37), (5, 0), (17, 3), (3, 130)):
        for window, alibi in ((0, False), (0, True), (20, False), (4, True)):
            found, wanted = run_attention(context_of(tier), kv_type, tokens, first, window, alibi)
            # Scores are float32 sums of 48 products of up to 10, values near 1.
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_attention_does_not_depend_on_threads(tier: str, kv_type: str) -> None:
    one, _ = run_attention(context_of(tier), kv_type, 33, 40, 0, False)
    two, _ = run_attention(context_of(tier, 2), kv_type, 33, 40, 0, False)
    np.testing.assert_array_equal(one.view(np.uint32), two.view(np.uint32))
