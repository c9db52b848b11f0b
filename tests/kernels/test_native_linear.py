"""Linear layers of every tier against the numpy truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernel_cases import TIERS, activations, assert_within, context_of, linear, pack
from vectors.make_vectors import bound_exact, bound_int8, random_weight

from bcquant.kernels import native
from bcquant.kernels import reference as ref

# (N, K, group): one row, less than a unit, ragged panels and units, more than one panel tile,
# groups that are 1, 2, 3 (block 96), 5 (block 32) and 8 units (block 128), one scale a row.
SHAPES = (
    (1, 1, 1), (16, 32, 32), (17, 33, 33), (5, 96, 32), (33, 200, 64), (50, 250, 96),
    (40, 384, 160), (19, 700, 256), (70, 300, 300),
)  # fmt: skip
TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 17)
FORMATS = [(b, s) for b, s in itertools.product((2, 3, 4, 8), (True, False))] + [(16, True)]


def weight_of(shape: tuple[int, int, int], bits: int, symmetric: bool) -> ref.Weight:
    n, k, group = shape
    return random_weight(n, k, bits, k if bits == 16 else group, symmetric, n + k + bits)


@pytest.mark.parametrize(("bits", "symmetric"), FORMATS)
@pytest.mark.parametrize("tier", TIERS)
def test_exact_linear_equals_the_reference(tier: str, bits: int, symmetric: bool) -> None:
    context = context_of(tier)
    for shape, m in itertools.product(SHAPES, TOKENS):
        w, x = weight_of(shape, bits, symmetric), activations(m, shape[1])
        # float32 products and sums in any order; bound_exact says how far they may be off.
        assert_within(linear(context, w, x), ref.linear_exact(x, w), bound_exact(x, w))


@pytest.mark.parametrize(("bits", "symmetric"), FORMATS)
@pytest.mark.parametrize("tier", TIERS)
def test_int8_linear_equals_the_reference(tier: str, bits: int, symmetric: bool) -> None:
    context = context_of(tier)
    for shape, m, per_token in itertools.product(SHAPES, TOKENS, (False, True)):
        w, x = weight_of(shape, bits, symmetric), activations(m, shape[1])
        if per_token and w.scales_NG.shape[1] > 1:
            continue
        found = linear(context, w, x, "int8_token" if per_token else "int8")
        # Integer sums are exact; the rest is a few float32 roundings a block, see bound_int8.
        assert_within(found, ref.linear_int8(x, w, per_token), bound_int8(x, w, per_token))


@pytest.mark.parametrize("m", [1, 5, 17])
@pytest.mark.parametrize("tier", TIERS)
def test_activations_are_quantized_to_the_reference_bit_by_bit(tier: str, m: int) -> None:
    k = 160
    codes = np.full((k, k), 128, np.uint8) + np.eye(k, dtype=np.uint8)
    identity = ref.Weight(codes, np.ones((k, 1), np.float16), None, 8, k)
    x = np.random.default_rng(m).normal(0, 1, (m, k)).astype(np.float32)
    x[0, 3:9] = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127]) * 0.25  # ties, at scale 0.25
    q, scales = ref.quantize_activations(x, 128)
    wanted = q.astype(np.float32) * np.repeat(scales, 128, axis=1)[:, :k]
    np.testing.assert_array_equal(linear(context_of(tier), identity, x, "int8"), wanted)


@pytest.mark.parametrize("precision", ["exact", "int8", "int8_token"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("tier", TIERS)
def test_nan_and_infinity_reach_the_results_of_their_token_only(
    tier: str, bits: int, precision: str
) -> None:
    w, x = weight_of((37, 130, 130), bits, True), activations(9, 130)
    x[2, 5], x[4, 129], x[7, 128] = np.nan, np.inf, -np.inf
    exact = precision == "exact" or bits == 16
    wanted = ref.linear_exact(x, w) if exact else ref.linear_int8(x, w, precision == "int8_token")
    found = linear(context_of(tier), w, x, precision)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    assert (~np.isfinite(found)).any(axis=1).tolist() == [i in (2, 4, 7) for i in range(9)]
    np.testing.assert_array_equal(found[~np.isfinite(wanted)], wanted[~np.isfinite(wanted)])


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_scale_that_is_nan_gives_nan_in_its_row_only(tier: str, precision: str) -> None:
    w = weight_of((37, 128, 64), 4, False)
    w.scales_NG[20, 1] = np.nan
    found = linear(context_of(tier), w, activations(3, 128), precision)
    assert np.isnan(found).any(axis=0).tolist() == [n == 20 for n in range(37)]


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("m", [1, 8, 17, 100])
@pytest.mark.parametrize("tier", TIERS)
def test_threads_do_not_change_a_bit(tier: str, m: int, precision: str) -> None:
    w, x = weight_of((700, 512, 64), 4, False), activations(m, 512)
    one = linear(context_of(tier), w, x, precision)
    for num_threads in (2, 3):
        many = linear(context_of(tier, num_threads), w, x, precision)
        np.testing.assert_array_equal(many.view(np.uint32), one.view(np.uint32))


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_results_may_be_added(tier: str, precision: str) -> None:
    context, w, x = context_of(tier), weight_of((33, 200, 64), 4, True), activations(7, 200)
    start = np.random.default_rng(0).normal(0, 1, (7, 33)).astype(np.float32)
    y = start.copy()
    native.linear(context, [pack(w)], x, [y], precision, accumulate=True)
    np.testing.assert_array_equal(y, start + linear(context, w, x, precision))


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_several_weights_share_one_x(tier: str, precision: str) -> None:
    context, x = context_of(tier), activations(9, 200)
    several = [weight_of((n, 200, 64), bits, n % 2 == 0) for n, bits in ((33, 4), (7, 8), (16, 16))]
    ys = [np.zeros((9, len(w.codes_NK)), np.float32) for w in several]
    native.linear(context, [pack(w) for w in several], x, ys, precision)
    for w, y in zip(several, ys, strict=True):
        np.testing.assert_array_equal(y, linear(context, w, x, precision))


@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("tier", TIERS)
def test_rows_may_be_parts_of_longer_ones(tier: str, precision: str) -> None:
    context, w, x = context_of(tier), weight_of((21, 100, 32), 3, False), activations(6, 100)
    wide = np.full((6, 200), 7, np.float32)
    wide[:, 40:140] = x
    native.linear(context, [pack(w)], wide[:, 40:140], [wide[:, 150:171]], precision)
    np.testing.assert_array_equal(wide[:, 150:171], linear(context, w, x, precision))
    assert (wide[:, 140:150] == 7).all()
    assert (wide[:, 171:] == 7).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("tier", TIERS)
def test_embedding_rows_are_exact(tier: str, bits: int) -> None:
    w = weight_of((37, 70, 32), bits, False)
    ids = np.array([0, 36, 16, 15, 36], np.int32)
    out = np.full((5, 70), np.nan, np.float32)
    native.embed(context_of(tier), pack(w), ids, out)
    np.testing.assert_array_equal(out, w.values_NK()[ids].astype(np.float32))
