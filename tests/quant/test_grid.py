"""bcquant.quant.grid: scales, codes and the floats they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcquant.errors import ShapeError, SolverError
from bcquant.quant import grid
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

formats = st.builds(
    QuantFormat,
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.sampled_from((-1, 8, 16, 64)),
    symmetric=st.booleans(),
)


def random_weight(n: int, k: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)
    return values + np.float32(shift)


def naive_dequantize(q: QuantizedTensor) -> np.ndarray:
    g = q.format.group_width(q.in_features)
    out = np.empty(q.codes_NK.shape, np.float32)
    for n in range(q.out_features):
        for k in range(q.in_features):
            step = int(q.codes_NK[n, k]) - int(q.zeros_NG[n, k // g])
            out[n, k] = np.float32(q.scales_NG[n, k // g]) * np.float32(step)
    return out


@settings(max_examples=80, deadline=None)
@given(
    fmt=formats,
    n=st.integers(1, 4),
    k=st.integers(1, 90),
    seed=st.integers(0, 1000),
    shift=st.sampled_from((-3.0, -0.5, 0.0, 0.5, 3.0)),
)
def test_nearest_misses_by_at_most_half_a_step(
    fmt: QuantFormat, n: int, k: int, seed: int, shift: float
) -> None:
    weight = random_weight(n, k, seed, shift)
    q = grid.quantize_nearest(weight, fmt)
    width = fmt.group_width(k)
    steps = np.repeat(np.abs(q.scales_NG.astype(np.float32)), width, axis=1)[:, :k]
    # Half a step by rounding. Asymmetric: rounding the zero moves an end by up to half a step, so
    # clipping there costs half as well, not added. Float16 scales are off by 2^-11, over 2^bits
    # steps: 255 / 2048 of a step at most.
    slack = fmt.max_code / 2048
    assert (np.abs(grid.dequantize(q) - weight) <= steps * (0.5 + slack) + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(fmt=formats, k=st.integers(1, 40), seed=st.integers(0, 1000))
def test_dequantize_equals_a_naive_loop(fmt: QuantFormat, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, fmt.num_groups(k))
    zeros = np.full(shape, fmt.symmetric_zero, np.uint8)
    if not fmt.symmetric:
        zeros = rng.integers(0, fmt.max_code + 1, shape, dtype=np.uint8)
    q = QuantizedTensor(
        rng.integers(0, fmt.max_code + 1, (3, k), dtype=np.uint8),
        rng.standard_normal(shape).astype(np.float16),
        zeros,
        fmt,
    )
    assert np.array_equal(grid.dequantize(q), naive_dequantize(q))  # exact: see `dequantize`


@settings(max_examples=40, deadline=None)
@given(fmt=formats, k=st.integers(1, 40), seed=st.integers(0, 1000))
def test_encode_recovers_codes_under_negative_scales(fmt: QuantFormat, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, fmt.num_groups(k))
    codes = rng.integers(0, fmt.max_code + 1, (2, k), dtype=np.uint8)
    scales = -(rng.random(shape) + 0.1).astype(np.float16)
    zeros = np.full(shape, fmt.symmetric_zero, np.uint8)
    weight = grid.dequantize(QuantizedTensor(codes, scales, zeros, fmt))
    assert np.array_equal(grid.encode(weight, scales, zeros, fmt), codes)


@pytest.mark.parametrize("shift", [-5.0, 0.0, 5.0])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_asymmetric_zeros_are_never_0(bits: int, shift: float) -> None:
    fmt = QuantFormat(bits, 16, symmetric=False)
    _, zeros = grid.minmax_scales(random_weight(16, 64, shift=shift), fmt)
    assert zeros.min() >= 1 and zeros.max() <= fmt.max_code


def test_one_signed_group_keeps_every_level() -> None:
    fmt = QuantFormat(4, -1, symmetric=False)
    weight = np.arange(16, dtype=np.float32)[None]
    for sign in (1, -1):
        q = grid.quantize_nearest(sign * weight, fmt)
        assert np.array_equal(grid.dequantize(q), sign * weight)  # scale 1 is exact in float16
        assert np.sign(q.scales_NG[0, 0]) == -sign or sign == -1


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_group_gets_scale_1_and_decodes_to_zero(symmetric: bool) -> None:
    fmt = QuantFormat(4, 8, symmetric)
    weight = random_weight(2, 16)
    weight[:, 8:] = 0
    q = grid.quantize_nearest(weight, fmt)
    assert (q.scales_NG[:, 1] == 1).all()
    assert (grid.dequantize(q)[:, 8:] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_below_float16_scales_become_zero(symmetric: bool) -> None:
    q = grid.quantize_nearest(np.full((1, 8), 1e-12, np.float32), QuantFormat(4, 8, symmetric))
    assert q.scales_NG.tolist() == [[1.0]]
    assert (grid.dequantize(q) == 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_signed_absmax_hits_the_largest_value_exactly(sign: int) -> None:
    weight = sign * np.array([[8.0, -3.0, 1.0, 7.0, 0, 0, 0, 0]], np.float32)
    fmt = QuantFormat(4, 8)
    scales, zeros = grid.absmax_scales(weight, fmt, signed=True)
    assert scales.tolist() == [[-float(sign)]]
    q = QuantizedTensor(grid.encode(weight, scales, zeros, fmt), scales, zeros, fmt)
    assert np.array_equal(grid.dequantize(q), weight)


def test_ragged_last_group_has_its_own_scale() -> None:
    weight = np.ones((1, 20), np.float32)
    weight[0, 16:] = 100
    scales, _ = grid.absmax_scales(weight, QuantFormat(8, 16))
    assert scales.shape == (1, 2)
    assert scales[0, 1] / scales[0, 0] == pytest.approx(100, rel=2e-3)  # two float16 roundings


def test_encode_of_a_zero_scale_is_the_zero() -> None:
    fmt = QuantFormat(4, 8)
    scales = np.array([[0, 1]], np.float16)
    zeros = np.full((1, 2), 8, np.uint8)
    codes = grid.encode(np.full((1, 16), 3, np.float32), scales, zeros, fmt)
    assert codes.tolist() == [[8] * 8 + [11] * 8]


def test_row_ranges_equal_the_whole() -> None:
    q = grid.quantize_nearest(random_weight(7, 40), QuantFormat(4, 16))
    whole = grid.dequantize(q)
    assert np.array_equal(grid.dequantize(q, (2, 5)), whole[2:5])
    with pytest.raises(ShapeError, match="5:9"):
        grid.dequantize(q, (5, 9))


def test_row_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, fmt = random_weight(9, 40), QuantFormat(4, 16, symmetric=False)
    whole = grid.quantize_nearest(weight, fmt)
    monkeypatch.setattr(grid, "_BLOCK_VALUES", 80)
    blocks = grid.quantize_nearest(weight, fmt)
    assert np.array_equal(whole.codes_NK, blocks.codes_NK)
    assert np.array_equal(grid.dequantize(whole), grid.dequantize(blocks))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weight_is_named(bad: float) -> None:
    weight = random_weight(3, 16)
    weight[2, 5] = bad
    with pytest.raises(SolverError, match=r"weight\[2, 5\]"):
        grid.quantize_nearest(weight, QuantFormat(4, 8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_scale_beyond_float16_is_refused(symmetric: bool) -> None:
    weight = np.array([[3e38, -3e38] * 4], np.float32)
    with pytest.raises(SolverError, match="float16 holds"):
        grid.quantize_nearest(weight, QuantFormat(2, 8, symmetric))


def test_shapes_and_dtypes_are_checked() -> None:
    fmt = QuantFormat(4, 8)
    with pytest.raises(ShapeError, match="float64"):
        grid.find_grid(np.zeros((2, 8)), fmt)  # type: ignore[arg-type]
    weight = random_weight(2, 16)
    scales, zeros = grid.find_grid(weight, fmt)
    with pytest.raises(ShapeError, match="scales"):
        grid.encode(weight, scales[:, :1], zeros, fmt)
    with pytest.raises(ShapeError, match="zeros"):
        grid.encode(weight, scales, zeros.astype(np.int8), fmt)  # type: ignore[arg-type]
