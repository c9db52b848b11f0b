"""Dense little-endian bit packing: value i of a row occupies bits i*bits .. (i+1)*bits - 1.

One rule serves every integer file format that bcquant reads or writes (GPTQ words along K and along
N, compressed-tensors words along K and along N): the caller transposes, this module packs rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.errors import ShapeError
from bcquant.quant.tensors import U8Array
from bcquant.spec.quant_format import BITS

I32Array = npt.NDArray[np.int32]

_WORD_BITS = 32


def num_words(n: int, bits: int) -> int:
    """32-bit words that `n` values of `bits` bits need, the last one zero-filled."""
    return -(-n * bits // _WORD_BITS)


def pack_bits(values_RN: U8Array, bits: int) -> I32Array:
    """Pack each row into 32-bit words.

    Args:
        values_RN: uint8, shape (R, n), each 0 .. 2^bits - 1.
        bits: 2, 3, 4 or 8. Three-bit values straddle words: 32 values fill exactly 3 words.
    Returns:
        int32, shape (R, ceil(n * bits / 32)); unused high bits of the last word are 0.
    Raises:
        ShapeError: not a uint8 matrix, bits unknown, or a value does not fit.
    Source: docs/formats/gptq_v1.md, "Bit order". Inverse: `unpack_bits`.
    """
    _check_bits(bits)
    if values_RN.ndim != 2 or values_RN.dtype != np.uint8:
        raise ShapeError(
            f"values are {values_RN.dtype}{list(values_RN.shape)}; a uint8 matrix is needed"
        )
    rows, n = values_RN.shape
    if bits < 8 and values_RN.size and int(values_RN.max()) >> bits:
        top = (1 << bits) - 1
        raise ShapeError(f"a value is {int(values_RN.max())}; {bits} bits hold 0..{top}")
    words = num_words(n, bits)
    # Eight values always fill `bits` whole bytes, so bytes are built first and words are a view.
    eights = -(-words * 4 // bits)
    if eights * 8 == n:
        padded = values_RN
    else:
        padded = np.zeros((rows, eights * 8), np.uint8)
        padded[:, :n] = values_RN
    data = _bytes_from_values(padded, bits)
    if data.shape[1] != words * 4:
        # `copy`, not ascontiguousarray: of one row that is a view whose stride is no whole word.
        data = data[:, : words * 4].copy()
    return data.view("<i4").astype(np.int32, copy=False)


def unpack_bits(words_RW: I32Array, bits: int, n: int) -> U8Array:
    """Unpack the first `n` values of each row.

    Args:
        words_RW: int32, shape (R, ceil(n * bits / 32)).
        bits: 2, 3, 4 or 8.
        n: values per row; spare bits of the last word are ignored.
    Returns:
        uint8, shape (R, n), each 0 .. 2^bits - 1.
    Raises:
        ShapeError: not an int32 matrix, bits unknown, or its width does not fit `n`.
    Inverse: `pack_bits`.
    """
    _check_bits(bits)
    if words_RW.ndim != 2 or words_RW.dtype != np.int32:
        raise ShapeError(
            f"words are {words_RW.dtype}{list(words_RW.shape)}; an int32 matrix is needed"
        )
    if n < 0 or words_RW.shape[1] != num_words(n, bits):
        raise ShapeError(
            f"a row has {words_RW.shape[1]} words; {n} values of {bits} bits need "
            f"{num_words(n, bits)}"
        )
    rows, words = words_RW.shape
    data: U8Array = words_RW.astype("<i4", order="C").view(np.uint8)
    spare = -(words * 4) % bits
    if spare:
        data = np.concatenate([data, np.zeros((rows, spare), np.uint8)], axis=1)
    values = _values_from_bytes(data, bits)
    return values if values.shape[1] == n else values[:, :n].copy()


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        raise ShapeError(f"bits is {bits!r}; one of {', '.join(map(str, BITS))} is needed")


def _bytes_from_values(v: U8Array, bits: int) -> U8Array:
    """(R, 8m) values -> (R, m * bits) bytes; uint8 shifts drop what belongs to the next byte."""
    if bits == 8:
        return v.copy()
    out = np.empty((v.shape[0], v.shape[1] // 8 * bits), np.uint8)
    if bits == 3:
        v0, v1, v2, v3, v4, v5, v6, v7 = (v[:, i::8] for i in range(8))
        out[:, 0::3] = v0 | (v1 << 3) | (v2 << 6)
        out[:, 1::3] = (v2 >> 2) | (v3 << 1) | (v4 << 4) | (v5 << 7)
        out[:, 2::3] = (v5 >> 1) | (v6 << 2) | (v7 << 5)
        return out
    per_byte = 8 // bits
    out[:] = v[:, 0::per_byte]
    for i in range(1, per_byte):
        out |= v[:, i::per_byte] << np.uint8(i * bits)
    return out


def _values_from_bytes(b: U8Array, bits: int) -> U8Array:
    """(R, m * bits) bytes -> (R, 8m) values."""
    if bits == 8:
        return b.copy()
    out = np.empty((b.shape[0], b.shape[1] * 8 // bits), np.uint8)
    if bits == 3:
        b0, b1, b2 = (b[:, i::3] for i in range(3))
        spread = (
            b0, b0 >> 3, (b0 >> 6) | (b1 << 2), b1 >> 1,
            b1 >> 4, (b1 >> 7) | (b2 << 1), b2 >> 2, b2 >> 5,
        )  # fmt: skip
        for i, value in enumerate(spread):
            out[:, i::8] = value & 7
        return out
    per_byte = 8 // bits
    for i in range(per_byte):
        out[:, i::per_byte] = (b >> (i * bits)) & ((1 << bits) - 1)
    return out
