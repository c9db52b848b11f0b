from __future__ import annotations

import numpy as np
import pytest

from bcquant.errors import ShapeError
from bcquant.quant.gguf_blocks import (
    KINDS,
    exact_kinds,
    fits,
    from_gguf_blocks,
    holds_groups,
    to_gguf_blocks,
)
from bcquant.quant.grid import dequantize
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

K = 512
FORMATS = [
    QuantFormat(bits, group_size, symmetric)
    for bits in (2, 3, 4, 8)
    for group_size in (32, 64, 96, 128, 256, -1)
    for symmetric in (True, False)
]


def random_weight(fmt: QuantFormat, n: int = 6, k: int = K, seed: int = 0) -> QuantizedTensor:
    """Codes and zeros of the whole range; scales of both signs, 0 and tiny ones among them."""
    rng = np.random.default_rng(seed)
    shape = (n, fmt.num_groups(k))
    codes = rng.integers(0, fmt.max_code + 1, (n, k)).astype(np.uint8)
    scales = rng.standard_normal(shape).astype(np.float16)
    scales.flat[:3] = (0, 65504 / 32, -6e-8)
    zeros = rng.integers(0, fmt.max_code + 1, shape).astype(np.uint8)
    zeros.flat[:2] = (0, fmt.max_code)
    if fmt.symmetric:
        zeros[:] = fmt.symmetric_zero
    return QuantizedTensor(codes, scales, zeros, fmt)


def differences(q: QuantizedTensor) -> np.ndarray:
    width = q.format.group_width(q.in_features)
    zeros = np.repeat(q.zeros_NG.astype(int), width, axis=1)[:, : q.in_features]
    return q.codes_NK.astype(int) - zeros


def ids(fmt: QuantFormat) -> str:
    return f"{fmt.bits}-{fmt.group_size}-{'sym' if fmt.symmetric else 'asym'}"


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_exact_kinds_carry_every_integer_and_scale(fmt: QuantFormat) -> None:
    q = random_weight(fmt)
    width = fmt.group_width(K)
    for kind in exact_kinds(fmt, K):
        block = KINDS[kind].width
        values = from_gguf_blocks(to_gguf_blocks(q, kind), kind)
        np.testing.assert_array_equal(values.codes_NK, differences(q))
        group_of_block = np.arange(0, K, block) // width
        # Bits, not values: the sign of a zero scale counts too.
        wanted = q.scales_NG[:, group_of_block].view(np.uint16)
        np.testing.assert_array_equal(values.scales_NB.view(np.uint16), wanted)
        assert not values.mins_NB.any()
        np.testing.assert_array_equal(values.dequantize(), dequantize(q))


@pytest.mark.judge
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_the_gguf_package_reads_our_blocks_as_the_same_weights(fmt: QuantFormat) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    q = random_weight(fmt)
    for kind in exact_kinds(fmt, K):
        blocks = to_gguf_blocks(q, kind)
        assert blocks.shape == (6, KINDS[kind].row_bytes(K))
        values = gguf_dequantize(blocks, GGMLQuantizationType[kind])
        np.testing.assert_array_equal(values, dequantize(q))  # every bit: nothing is rounded


@pytest.mark.judge
def test_the_gguf_package_reads_q4_1_as_we_do() -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as gguf_dequantize

    q = random_weight(QuantFormat(4, 64, False))
    blocks = to_gguf_blocks(q, "Q4_1")
    expected = gguf_dequantize(blocks, GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(from_gguf_blocks(blocks, "Q4_1").dequantize(), expected)


@pytest.mark.judge
def test_sizes_and_numbers_are_ggmls() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, kind in KINDS.items():
        ggml = GGMLQuantizationType[name]
        assert (int(ggml), *GGML_QUANT_SIZES[ggml]) == (kind.ggml_type, kind.width, kind.num_bytes)


def test_the_smallest_exact_kind_comes_first() -> None:
    def first(bits: int, group_size: int, symmetric: bool, k: int = K) -> str | None:
        return next(iter(exact_kinds(QuantFormat(bits, group_size, symmetric), k)), None)

    assert [first(b, 64, True) for b in (2, 3, 4, 8)] == ["Q4_0", "Q4_0", "Q4_0", "Q8_0"]
    assert [first(b, 64, False) for b in (2, 3, 4, 8)] == ["Q4_0", "Q4_0", "Q5_0", None]
    assert [first(4, g, False) for g in (256, -1)] == ["Q4_K", "Q4_K"]
    assert first(4, 512, False, k=768) == "Q4_K"  # a shorter last group is whole blocks too
    assert first(4, -1, False, k=96) == "Q5_0"
    assert first(4, 64, True, k=96) == "Q4_0"
    for group_size, k in ((16, K), (40, 480), (-1, 40), (128, 144)):
        assert exact_kinds(QuantFormat(4, group_size, True), k) == ()


def test_q4_1_rounds_nothing_but_the_minimum() -> None:
    q = random_weight(QuantFormat(4, 32, False))
    values = from_gguf_blocks(to_gguf_blocks(q, "Q4_1"), "Q4_1")
    np.testing.assert_array_equal(values.codes_NK, q.codes_NK)
    np.testing.assert_array_equal(values.scales_NB, q.scales_NG)
    exact = -q.scales_NG.astype(np.float64) * q.zeros_NG
    np.testing.assert_array_equal(values.mins_NB, exact.astype(np.float16))
    # Half a float16 step of the minimum: 2^-11 of it, or 2^-25 where it is subnormal.
    error = np.abs(values.mins_NB - exact)
    assert (error <= np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25)).all()
    assert error.max() > 0, "nothing was rounded: the test shows nothing"


def test_eight_bit_asymmetric_fits_when_its_values_do() -> None:
    fmt = QuantFormat(8, 32, False)
    q = random_weight(fmt)
    assert not fits(q, "Q8_0")
    with pytest.raises(ShapeError, match="Q8_0 holds -128 to 127"):
        to_gguf_blocks(q, "Q8_0")
    near = QuantizedTensor(q.codes_NK, q.scales_NG, np.full_like(q.zeros_NG, 128), fmt)
    assert fits(near, "Q8_0")
    values = from_gguf_blocks(to_gguf_blocks(near, "Q8_0"), "Q8_0")
    np.testing.assert_array_equal(values.codes_NK, differences(near))


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "kind", "message"),
    [
        (4, 64, False, "Q4_0", "code - zero goes from -15 to 15; Q4_0 holds -8 to 7"),
        (4, 16, True, "Q4_0", "groups of 16 do not divide into Q4_0 blocks of 32"),
        (4, 128, False, "Q4_K", "groups of 128 do not divide into Q4_K blocks of 256"),
        (8, 32, True, "Q4_1", "codes of 8 bits; Q4_1 holds 4"),
        (8, 256, True, "Q4_K", "codes of 8 bits; Q4_K holds 4"),
        (8, 32, True, "Q5_0", "Q5_0 holds -16 to 15"),
    ],
)
def test_what_does_not_fit_is_refused(
    bits: int, group_size: int, symmetric: bool, kind: str, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        to_gguf_blocks(random_weight(QuantFormat(bits, group_size, symmetric)), kind)


def test_a_minimum_beyond_float16_is_refused() -> None:
    q = random_weight(QuantFormat(4, 32, False))
    scales = np.full_like(q.scales_NG, 30000)
    with pytest.raises(ShapeError, match=r"minimum 4\.5e\+05 of a block overflows float16"):
        to_gguf_blocks(QuantizedTensor(q.codes_NK, scales, q.zeros_NG, q.format), "Q4_1")


def test_a_foreign_q4_k_block_is_no_integer_grid() -> None:
    blocks = to_gguf_blocks(random_weight(QuantFormat(4, 256, False)), "Q4_K")
    for byte in (2, 4, 7, 9, 12, 15):
        other = blocks.copy()
        other[1, byte] ^= 0x42
        with pytest.raises(ShapeError, match="not an integer grid"):
            from_gguf_blocks(other, "Q4_K")


def test_rows_of_a_broken_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiple of 18 bytes are needed for Q4_0"):
        from_gguf_blocks(np.zeros((2, 40), np.uint8), "Q4_0")


def test_a_group_covers_whole_blocks_or_none() -> None:
    assert holds_groups(QuantFormat(4, 96, True), 192, "Q4_0")
    assert not holds_groups(QuantFormat(4, 24, True), 192, "Q4_0")
    assert not holds_groups(QuantFormat(4, 256, True), 320, "Q4_K")
