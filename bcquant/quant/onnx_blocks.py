"""Canonical quantized weights <-> the three layouts of an ONNX graph, losslessly both ways.

Every layout is codes in containers of 2, 4 or 8 bits, blocks of columns that share a scale, and
zero points. A block is never wider than a group, so a group's scale is repeated for its blocks and
the integers stay as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bcquant.errors import ExportError, ShapeError
from bcquant.quant.packing import num_words, pack_bits, unpack_bits
from bcquant.quant.tensors import F16Array, QuantizedTensor, U8Array
from bcquant.spec.quant_format import QuantFormat

FloatArray = npt.NDArray[np.floating[Any]]
T = TypeVar("T", bound=np.generic)

BLOCK_SIZES = (256, 128, 64, 32, 16)
# Of a row with one scale any block is right. Small ones round activations finely (accuracy level
# 4 has a scale a block) and store the scale often; 128 is what bcquant's own kernels use.
_ROW_BLOCK_SIZES = (128, 64, 32)


class NBits(NamedTuple):
    """Inputs and attributes of a MatMulNBits node. Source: docs/formats/onnx_matmul_nbits.md.

    Attributes:
        bits: of a container: 2, 4 or 8.
        block_size: columns a block.
        b: uint8 (N, blocks, block_size * bits / 8), low bits first.
        scales: (N, blocks); float16 as packed here, float32 in a float32 graph.
        zero_points: uint8 (N, ceil(blocks * bits / 8)); None = every zero is 2^(bits-1).
    """

    bits: int
    block_size: int
    b: U8Array
    scales: FloatArray
    zero_points: U8Array | None


class Blockwise(NamedTuple):
    """Inputs and attributes of a DequantizeLinear node over axis 0.

    Attributes:
        bits: of a container: 4 or 8.
        block_size: rows of [K, N] a block; 0 = one scale a column (`scales` has one axis).
        codes: uint8; for 8 bits (K, N), for 4 bits ceil(K * N / 2) bytes of the flattened (K, N).
        scales: float16 (blocks, N), or (N,).
        zeros: packed as `codes`, of the shape of `scales`.
    """

    bits: int
    block_size: int
    codes: U8Array
    scales: FloatArray
    zeros: U8Array


class Blocks(NamedTuple):
    """What a file's bytes say: codes (N, K), scales (N, blocks), zeros (N, blocks)."""

    codes_NK: U8Array
    scales_NG: FloatArray
    zeros_NG: U8Array


def requirements(fmt: QuantFormat, k: int) -> list[str]:
    """Why blocks cannot hold a weight with K columns; empty when they can."""
    width = fmt.group_width(k)
    if fmt.num_groups(k) == 1 or width % BLOCK_SIZES[-1] == 0:
        return []
    return [
        f"groups of {width} columns are no multiple of 16, the smallest block; quantize with a "
        "group size of 32, 64, 128 or -1"
    ]


def block_size_of(fmt: QuantFormat, k: int) -> int:
    """Columns a block: the largest power of two from 16 to 256 that divides a group.

    A row with one scale takes a divisor of it if there is one, else the last block is padded.

    Raises:
        ExportError: `requirements` is not empty.
    """
    reasons = requirements(fmt, k)
    if reasons:
        raise ExportError("; ".join(reasons))
    width = fmt.group_width(k)
    if fmt.num_groups(k) > 1:
        return next(size for size in BLOCK_SIZES if width % size == 0)
    whole = [size for size in _ROW_BLOCK_SIZES if k % size == 0]
    return whole[0] if whole else min(128, max(16, 1 << (k - 1).bit_length()))


def container_bits(fmt: QuantFormat, smallest: int = 2) -> int:
    """Bits in which a code of `fmt.bits` is stored: 3 bits take 4."""
    return next(bits for bits in (2, 4, 8) if bits >= max(fmt.bits, smallest))


def has_zero_points(fmt: QuantFormat) -> bool:
    """Whether MatMulNBits needs zero points: those of its containers are not this format's."""
    return not fmt.symmetric or container_bits(fmt) != fmt.bits


def to_matmul_nbits(q: QuantizedTensor) -> NBits:
    """Inputs of MatMulNBits; codes, scales and zeros are carried bit by bit.

    Raises:
        ExportError: `requirements` is not empty.
    Source: docs/formats/onnx_matmul_nbits.md. Inverse: `from_matmul_nbits`.
    """
    fmt, k = q.format, q.in_features
    size, bits = block_size_of(fmt, k), container_bits(fmt)
    blocks = -(-k // size)
    padded = q.codes_NK
    if blocks * size != k:
        padded = np.zeros((q.out_features, blocks * size), np.uint8)
        padded[:, :k] = q.codes_NK
    data = _packed_rows(padded, bits)
    zero_points = None
    if has_zero_points(fmt):
        zero_points = _packed_rows(_per_block(q.zeros_NG, fmt, k, size), bits)
    scales = _per_block(q.scales_NG, fmt, k, size)
    return NBits(bits, size, data.reshape(q.out_features, blocks, -1), scales, zero_points)


def from_matmul_nbits(stored: NBits, k: int) -> Blocks:
    """What the inputs of a MatMulNBits node mean.

    Args:
        stored: scales of any float type.
        k: columns of the weight (attribute K).
    Raises:
        ShapeError: the arrays contradict each other.
    Inverse: `to_matmul_nbits`.
    """
    bits, size = stored.bits, stored.block_size
    if bits not in (2, 4, 8) or size not in BLOCK_SIZES:
        raise ShapeError(f"MatMulNBits of {bits} bits in blocks of {size}; 2, 4 or 8 and 16 .. 256")
    n, blocks = len(stored.b), -(-k // size)
    _check("B", stored.b, (n, blocks, size * bits // 8))
    if stored.scales.shape != (n, blocks):
        raise ShapeError(f"scales are {list(stored.scales.shape)}; {[n, blocks]} is needed")
    codes_NK = _unpacked_rows(stored.b.reshape(n, -1), bits, blocks * size)[:, :k]
    zeros_NG: U8Array = np.full((n, blocks), 1 << (bits - 1), np.uint8)
    if stored.zero_points is not None:
        _check("zero_points", stored.zero_points, (n, -(-blocks * bits // 8)))
        zeros_NG = _unpacked_rows(stored.zero_points, bits, blocks)
    return Blocks(codes_NK, stored.scales, zeros_NG)


def to_blockwise_dq(q: QuantizedTensor) -> Blockwise:
    """Inputs of DequantizeLinear(axis=0) of a weight [K, N].

    Raises:
        ExportError: `requirements` is not empty.
    Source: docs/formats/onnx_blockwise_dq.md. Inverse: `from_blockwise_dq`.
    """
    fmt, k = q.format, q.in_features
    bits = container_bits(fmt, smallest=4)
    codes = _packed_flat(q.codes_NK.T, bits)
    if k % block_size_of(fmt, k) and fmt.num_groups(k) == 1:  # no block may be short
        return Blockwise(bits, 0, codes, q.scales_NG[:, 0], _packed_flat(q.zeros_NG[:, 0], bits))
    size = block_size_of(fmt, k)
    scales = np.ascontiguousarray(_per_block(q.scales_NG, fmt, k, size).T)
    zeros = _packed_flat(_per_block(q.zeros_NG, fmt, k, size).T, bits)
    return Blockwise(bits, size, codes, scales, zeros)


def from_blockwise_dq(stored: Blockwise, k: int, n: int) -> Blocks:
    """What the inputs of a DequantizeLinear node over a weight [K, N] mean.

    Raises:
        ShapeError: the arrays contradict each other.
    Inverse: `to_blockwise_dq`.
    """
    if stored.bits not in (4, 8) or stored.block_size < 0:
        raise ShapeError(f"{stored.bits} bits in blocks of {stored.block_size}; 4 or 8 is needed")
    blocks = -(-k // stored.block_size) if stored.block_size else 1
    if stored.scales.size != blocks * n:
        raise ShapeError(f"{stored.scales.size} scales; {[blocks, n]} is needed")
    codes_NK = _unpacked_flat(stored.codes, stored.bits, (k, n)).T
    zeros_NG = _unpacked_flat(stored.zeros, stored.bits, (blocks, n)).T
    return Blocks(codes_NK, stored.scales.reshape(blocks, n).T, zeros_NG)


def to_matmul_integer(q: QuantizedTensor) -> tuple[U8Array, F16Array]:
    """Inputs of MatMulInteger for W8A8: codes uint8 (K, N) with zero point 128, scales (N,).

    Raises:
        ExportError: the format is not 8-bit, symmetric, one scale per row.
    """
    fmt = q.format
    if fmt.bits != 8 or not fmt.symmetric or fmt.num_groups(q.in_features) != 1:
        raise ExportError(
            f"int8 activations need 8-bit symmetric weights with one scale a row; got {fmt.bits} "
            f"bits, group_size {fmt.group_size}"
        )
    return np.ascontiguousarray(q.codes_NK.T), q.scales_NG[:, 0].copy()


def _per_block(array_NG: npt.NDArray[T], fmt: QuantFormat, k: int, size: int) -> npt.NDArray[T]:
    """(N, G) -> (N, blocks): each group's value for each of its blocks."""
    blocks = np.arange(-(-k // size))
    return array_NG[:, blocks * size // fmt.group_width(k)]


def _packed_rows(values_NK: U8Array, bits: int) -> U8Array:
    """Each row's values in whole bytes, low bits first."""
    row_bytes = -(-values_NK.shape[1] * bits // 8)
    words = pack_bits(np.ascontiguousarray(values_NK), bits)
    return np.ascontiguousarray(words.astype("<i4", copy=False).view(np.uint8)[:, :row_bytes])


def _unpacked_rows(data: U8Array, bits: int, count: int) -> U8Array:
    padded = np.zeros((len(data), num_words(count, bits) * 4), np.uint8)
    padded[:, : data.shape[1]] = data
    return unpack_bits(padded.view("<i4").astype(np.int32, copy=False), bits, count)


def _packed_flat(values: U8Array, bits: int) -> U8Array:
    """Values in row-major order; two 4-bit ones to a byte, the even one low."""
    if bits == 8:
        return np.ascontiguousarray(values)
    flat = values.reshape(-1)
    low = flat[0::2].copy()
    low[: flat.size // 2] |= flat[1::2] << np.uint8(4)
    return low


def _unpacked_flat(data: U8Array, bits: int, shape: tuple[int, int]) -> U8Array:
    count = shape[0] * shape[1]
    if data.dtype != np.uint8 or data.size != -(-count * bits // 8):
        raise ShapeError(
            f"{data.size} elements of {data.dtype}; {-(-count * bits // 8)} bytes are needed for "
            f"{list(shape)} of {bits} bits"
        )
    if bits == 8:
        return data.reshape(shape)
    flat = np.empty(data.size * 2, np.uint8)
    flat[0::2], flat[1::2] = data.reshape(-1) & 15, data.reshape(-1) >> 4
    return flat[:count].reshape(shape)


def _check(name: str, array: U8Array, shape: tuple[int, ...]) -> None:
    if array.dtype != np.uint8 or array.shape != shape:
        raise ShapeError(
            f"{name} is {array.dtype}{list(array.shape)}; uint8{list(shape)} is needed"
        )
