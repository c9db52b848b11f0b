"""tests/vectors/kernels.safetensors is what the generator makes, and every tier reproduces it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import TIERS, assert_within, context_of
from safetensors.numpy import load_file
from vectors.make_vectors import PATH, make_vectors

from bcquant.kernels import native

Vectors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def stored() -> Vectors:
    return load_file(PATH)


def cases(stored: Vectors) -> list[str]:
    return [name.removesuffix(".packed") for name in stored if name.endswith(".packed")]


def test_the_file_is_what_the_generator_makes(stored: Vectors) -> None:
    made = make_vectors()
    assert made.keys() == stored.keys()
    for name, array in made.items():
        assert array.dtype == stored[name].dtype, name
        if name.split(".")[-1] in ("codes", "packed", "scales", "zeros"):
            np.testing.assert_array_equal(array, stored[name], err_msg=name)
        else:  # float64 sums of numpy's BLAS, and its exp, may differ by machine in the last bit
            np.testing.assert_allclose(array, stored[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_the_file_is_small() -> None:
    assert PATH.stat().st_size < 400_000  # it is in the repository


def test_packing_gives_the_stored_bytes(stored: Vectors) -> None:
    assert len(cases(stored)) == 36
    for case in cases(stored):
        bits, group_size = (int(part[1:]) for part in case.split("_")[:2])
        codes, zeros = stored[f"{case}.codes"], stored.get(f"{case}.zeros")
        if bits == 16:
            packed = native.pack_f16(codes)
        else:
            packed = native.pack(codes, stored[f"{case}.scales"], zeros, bits, group_size)
        assert packed.tobytes() == stored[f"{case}.packed"].tobytes(), case


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("tier", TIERS)
def test_linear_layers_give_the_stored_results(
    tier: str, num_threads: int, stored: Vectors
) -> None:
    context, ran = context_of(tier, num_threads), 0
    for case in cases(stored):
        weight = native.open_packed(stored[f"{case}.packed"])
        x = stored[f"x.k{weight.in_features}"]
        for precision in native.PRECISIONS:
            if f"{case}.{precision}" not in stored:
                continue
            y = np.full((len(x), weight.out_features), np.nan, np.float32)
            native.linear(context, [weight], x, [y], precision)
            # The stored bound counts float32 roundings: make_vectors.bound_exact, bound_int8.
            assert_within(y, stored[f"{case}.{precision}"], stored[f"{case}.bound_{precision}"])
            ran += 1
    assert ran == 36 + 32 + 16  # exact, int8 (not for 16 bits), int8_token (one scale a row)


@pytest.mark.parametrize("tier", TIERS)
def test_operations_give_the_stored_results(tier: str, stored: Vectors) -> None:
    context = context_of(tier)
    out = np.empty_like(stored["rmsnorm.x"])
    native.rmsnorm(context, stored["rmsnorm.x"], stored["rmsnorm.weight"], 1e-5, out)
    # A sum of squares loses at most K / 2 roundings of its own size, its root half of that.
    np.testing.assert_allclose(out, stored["rmsnorm.out"], rtol=83 / 4 * 2.0**-24 + 3e-7)
    heads = stored["rope.x"].copy()
    native.rope(context, heads, 3, stored["rope.cos"], stored["rope.sin"])
    # Two products and a sum, each rounded: 3 x 2^-24 of values up to 5.
    np.testing.assert_allclose(heads, stored["rope.out"], rtol=2e-7, atol=1e-6)
    native.silu_mul(context, stored["silu_mul.gate"], stored["silu_mul.up"], out)
    # exp to 1.1 units in the last place, then a sum, a division and a product.
    np.testing.assert_allclose(out, stored["silu_mul.out"], rtol=5e-7, atol=1e-12)
    scores = stored["softmax.x"].copy()
    native.softmax(context, scores, 0.7)
    # exp of a float32 argument of up to 40: its rounding, 40 x 2^-24, is the relative error.
    np.testing.assert_allclose(scores, stored["softmax.out"], rtol=5e-6, atol=1e-12)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_attention_gives_the_stored_results(tier: str, kv_type: str, stored: Vectors) -> None:
    context, cache = context_of(tier), native.kv_cache(kv_type, 2, 16, 32)
    cache.append(context, 0, stored["attention.keys"], stored["attention.values"])
    for name, window, alibi in (("whole", 0, False), ("window5", 5, False), ("alibi", 0, True)):
        out = np.full_like(stored["attention.q"], np.nan)
        slopes = stored["attention.alibi"] if alibi else None
        native.attend(context, cache, stored["attention.q"], out, 13, 0.25, window, slopes)
        # Scores of up to 10 are float32: e^score is off by 10 x 2^-24; values are near 1.
        np.testing.assert_allclose(out, stored[f"attention.{kv_type}.{name}"], rtol=0, atol=3e-6)
