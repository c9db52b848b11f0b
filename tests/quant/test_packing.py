"""bcquant.quant.packing: dense little-endian words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcquant.errors import ShapeError
from bcquant.quant.packing import num_words, pack_bits, unpack_bits

BITS = (2, 3, 4, 8)


def naive_pack(row: list[int], bits: int) -> list[int]:
    """One big integer, cut into signed 32-bit words."""
    stream = sum(value << (i * bits) for i, value in enumerate(row))
    words = []
    for i in range(num_words(len(row), bits)):
        word = (stream >> (32 * i)) & 0xFFFFFFFF
        words.append(word - (1 << 32) if word >> 31 else word)
    return words


@settings(max_examples=150, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 4),
    n=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_and_bit_order_match_one_big_integer(
    bits: int, rows: int, n: int, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, n), dtype=np.uint8)
    words = pack_bits(values, bits)
    assert words.tolist() == [naive_pack(row.tolist(), bits) for row in values]
    assert np.array_equal(unpack_bits(words, bits, n), values)


@pytest.mark.parametrize(("bits", "words"), [(2, 2), (3, 3), (4, 4), (8, 8)])
def test_32_values_fill_bits_words(bits: int, words: int) -> None:
    assert pack_bits(np.zeros((1, 32), np.uint8), bits).shape == (1, words)


@pytest.mark.parametrize(
    ("bits", "value", "word"),
    [(2, 1, 0x55555555), (4, 7, 0x77777777), (4, 8, -0x77777778), (8, 127, 0x7F7F7F7F)],
)
def test_known_words_of_published_checkpoints(bits: int, value: int, word: int) -> None:
    values = np.full((1, 32 // bits), value, np.uint8)
    assert pack_bits(values, bits).tolist() == [[word]]


@pytest.mark.parametrize("bits", BITS)
def test_spare_bits_are_written_as_zero_and_ignored_when_read(bits: int) -> None:
    values = np.full((2, 5), (1 << bits) - 1, np.uint8)
    words = pack_bits(values, bits)
    spare = words.shape[1] * 32 - 5 * bits
    assert all((int(w) & 0xFFFFFFFF) >> (32 - spare) == 0 for w in words[:, -1])
    noisy = words.copy()
    noisy[:, -1] |= np.int32(-1 << (32 - spare))
    assert np.array_equal(unpack_bits(noisy, bits, 5), values)


@pytest.mark.parametrize("bits", BITS)
def test_result_is_a_fresh_row_major_array(bits: int) -> None:
    """A transposed single row once kept a row stride that torch.from_numpy refuses."""
    values = np.full((32, 1), 1, np.uint8)
    words = pack_bits(values.T, bits)
    assert words.strides == (bits * 4, 4)
    assert not np.shares_memory(words, values)
    codes = unpack_bits(words, bits, 32)
    assert not np.shares_memory(codes, words)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_pack_rejects_a_value_that_does_not_fit(bits: int) -> None:
    with pytest.raises(ShapeError, match=f"a value is {1 << bits}"):
        pack_bits(np.full((1, 4), 1 << bits, np.uint8), bits)


def test_pack_rejects_other_dtypes() -> None:
    with pytest.raises(ShapeError, match="int64"):
        pack_bits(np.zeros((1, 8), np.int64), 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [0, 1, 5, 16])
def test_unknown_bits_are_rejected(bits: int) -> None:
    with pytest.raises(ShapeError, match="one of 2, 3, 4, 8"):
        pack_bits(np.zeros((1, 8), np.uint8), bits)
    with pytest.raises(ShapeError, match="one of 2, 3, 4, 8"):
        unpack_bits(np.zeros((1, 8), np.int32), bits, 8)


@pytest.mark.parametrize("n", [-1, 0, 8, 17])
def test_unpack_rejects_a_width_that_does_not_fit(n: int) -> None:
    with pytest.raises(ShapeError, match="2 words"):
        unpack_bits(np.zeros((1, 2), np.int32), 4, n)
