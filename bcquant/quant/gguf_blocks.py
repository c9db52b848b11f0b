"""GGUF block types as a pure function of the canonical quantized weight, and back to integers.

A block holds 32 or 256 neighbours of one row behind its own float16 scale. Where a group of our
grid covers whole blocks, its scale is repeated and the integers are carried over: nothing is
rounded. Layouts: docs/formats/gguf_blocks.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcquant.errors import ShapeError
from bcquant.quant.tensors import F16Array, F32Array, QuantizedTensor, U8Array
from bcquant.spec.quant_format import QuantFormat

I16Array = npt.NDArray[np.int16]


@dataclass(frozen=True)
class BlockKind:
    """One block type.

    Attributes:
        ggml_type: its number in ggml.
        width: weights in a block.
        num_bytes: of a block.
        low, high: smallest and largest c - z that a block holds; for Q4_1, which keeps a minimum
            beside the code, and Q4_K, which keeps the zero, what 4-bit codes can give.
    """

    ggml_type: int
    width: int
    num_bytes: int
    low: int
    high: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return 8 * self.num_bytes / self.width

    def row_bytes(self, k: int) -> int:
        """Bytes of a row of `k` weights, a multiple of `width`."""
        return k // self.width * self.num_bytes


# By size; Q4_0 before Q4_K, because more of ggml's kernels take it.
KINDS: dict[str, BlockKind] = {
    "Q4_0": BlockKind(2, 32, 18, -8, 7),
    "Q4_K": BlockKind(12, 256, 144, -15, 15),
    "Q4_1": BlockKind(3, 32, 20, -15, 15),
    "Q5_0": BlockKind(6, 32, 22, -16, 15),
    "Q8_0": BlockKind(8, 32, 34, -128, 127),
}
_OFFSET = {"Q4_0": 8, "Q5_0": 16}
# Q4_K cuts a block into 8 parts of 32, each with a 6-bit scale and a 6-bit minimum.
_PARTS, _PART = 8, 32


@dataclass(frozen=True)
class BlockValues:
    """What blocks say: W[n,k] = scales[n, k // width] * codes[n,k] + mins[n, k // width].

    Attributes:
        codes_NK: int16, shape (N, K): c - z of the canonical weight; for Q4_1 the code c itself.
        scales_NB: float16, shape (N, K / width).
        mins_NB: float16, same shape; 0 for all but Q4_1.
    """

    codes_NK: I16Array
    scales_NB: F16Array
    mins_NB: F16Array

    def dequantize(self) -> F32Array:
        """Weights in float32, shape (N, K): exact but for Q4_1's sum, which is rounded once."""
        width = self.codes_NK.shape[1] // self.scales_NB.shape[1]
        scales_NK, mins_NK = (
            np.repeat(values.astype(np.float32), width, axis=1)
            for values in (self.scales_NB, self.mins_NB)
        )
        return self.codes_NK.astype(np.float32) * scales_NK + mins_NK


def holds_groups(fmt: QuantFormat, k: int, kind: str) -> bool:
    """Whether rows of `k` divide into blocks of this kind such that no block spans two groups."""
    width = KINDS[kind].width
    return k % width == 0 and fmt.group_width(k) % width == 0


def exact_kinds(fmt: QuantFormat, k: int) -> tuple[str, ...]:
    """Kinds that hold every weight of this format exactly, whatever its values; smallest first.

    Args:
        k: weights of a row.
    """
    largest = fmt.max_code
    low, high = (-(largest + 1) // 2, largest // 2) if fmt.symmetric else (-largest, largest)
    return tuple(
        name
        for name, kind in KINDS.items()
        if name != "Q4_1" and holds_groups(fmt, k, name) and kind.low <= low and high <= kind.high
    )


def fits(q: QuantizedTensor, kind: str) -> bool:
    """Whether every c - z of this weight, its values looked at, lies in the range of a kind."""
    if not holds_groups(q.format, q.in_features, kind):
        return False
    differences_NK = _differences(q)
    limits = KINDS[kind]
    return limits.low <= int(differences_NK.min()) and int(differences_NK.max()) <= limits.high


def to_gguf_blocks(q: QuantizedTensor, kind: str) -> U8Array:
    """Pack a weight as blocks.

    Exact, except for Q4_1, whose minimum -s * z is rounded to float16.

    Args:
        kind: a key of `KINDS`.
    Returns:
        uint8, shape (N, K / width * num_bytes).
    Raises:
        ShapeError: K or the group width is no multiple of the block, a c - z is out of range, or
            a minimum overflows float16.
    Source: docs/formats/gguf_blocks.md. Inverse: `from_gguf_blocks`.
    """
    limits = KINDS[kind]
    n, k = q.codes_NK.shape
    if not holds_groups(q.format, k, kind):
        raise ShapeError(
            f"rows of {k} in groups of {q.format.group_width(k)} do not divide into {kind} blocks "
            f"of {limits.width}"
        )
    blocks_NBb = np.empty((n, k // limits.width, limits.num_bytes), np.uint8)
    scales_NB = _per_block(q.scales_NG, q.format, k, limits.width)
    blocks_NBb[..., 0:2] = _f16_bytes(scales_NB)
    if kind in ("Q4_1", "Q4_K"):
        if q.format.bits > 4:
            raise ShapeError(f"codes of {q.format.bits} bits; {kind} holds 4")
        zeros_NB = _per_block(q.zeros_NG, q.format, k, limits.width)
        pack = _pack_q4_1 if kind == "Q4_1" else _pack_q4_k
        pack(blocks_NBb, q.codes_NK.reshape(n, -1, limits.width), scales_NB, zeros_NB)
    else:
        differences_NK = _differences(q)
        low, high = int(differences_NK.min()), int(differences_NK.max())
        if low < limits.low or high > limits.high:
            raise ShapeError(
                f"code - zero goes from {low} to {high}; {kind} holds {limits.low} to {limits.high}"
            )
        _pack_signed(blocks_NBb, differences_NK.reshape(n, -1, limits.width), kind)
    return blocks_NBb.reshape(n, -1)


def from_gguf_blocks(blocks_Nb: U8Array, kind: str) -> BlockValues:
    """Integers and scales of blocks.

    Args:
        blocks_Nb: uint8, shape (N, bytes of a row).
        kind: a key of `KINDS`.
    Raises:
        ShapeError: a row is no whole number of blocks, or a Q4_K block is not one of ours: scales
            of 1 and d = dmin.
    Inverse: `to_gguf_blocks`.
    """
    limits = KINDS[kind]
    if blocks_Nb.dtype != np.uint8 or blocks_Nb.ndim != 2 or blocks_Nb.shape[1] % limits.num_bytes:
        raise ShapeError(
            f"blocks are {blocks_Nb.dtype}{list(blocks_Nb.shape)}; uint8 rows of a multiple of "
            f"{limits.num_bytes} bytes are needed for {kind}"
        )
    n = blocks_Nb.shape[0]
    blocks_NBb = blocks_Nb.reshape(n, -1, limits.num_bytes)
    scales_NB = _f16_values(blocks_NBb[..., 0:2])
    mins_NB = np.zeros_like(scales_NB)
    if kind == "Q8_0":
        codes_NBw = blocks_NBb[..., 2:].view(np.int8).astype(np.int16)
    elif kind == "Q4_K":
        codes_NBw = _unpack_q4_k(blocks_NBb)
    else:
        codes_NBw = _nibbles(blocks_NBb[..., -16:]).astype(np.int16)
        if kind == "Q5_0":
            codes_NBw |= np.unpackbits(blocks_NBb[..., 2:6], axis=-1, bitorder="little") * np.int16(
                16
            )
        if kind == "Q4_1":
            mins_NB = _f16_values(blocks_NBb[..., 2:4])
        codes_NBw -= np.int16(_OFFSET.get(kind, 0))
    return BlockValues(codes_NBw.reshape(n, -1), scales_NB, mins_NB)


def _differences(q: QuantizedTensor) -> I16Array:
    """c - z, int16, shape (N, K)."""
    zeros_NG = q.zeros_NG.astype(np.int16)
    if zeros_NG.shape[1] > 1:
        width = q.format.group_width(q.in_features)
        zeros_NG = np.repeat(zeros_NG, width, axis=1)[:, : q.in_features]
    return q.codes_NK.astype(np.int16) - zeros_NG


def _per_block(
    values_NG: npt.NDArray[np.generic], fmt: QuantFormat, k: int, width: int
) -> npt.NDArray[np.generic]:
    """(N, G) -> (N, K / width): each group's value for its blocks."""
    group_of_block = np.arange(0, k, width) // fmt.group_width(k)
    return values_NG[:, group_of_block]


def _pack_signed(blocks_NBb: U8Array, differences_NBw: I16Array, kind: str) -> None:
    if kind == "Q8_0":
        blocks_NBb[..., 2:] = differences_NBw.astype(np.int8).view(np.uint8)
        return
    codes_NBw = (differences_NBw + np.int16(_OFFSET[kind])).astype(np.uint8)
    blocks_NBb[..., -16:] = _packed_nibbles(codes_NBw & np.uint8(15))
    if kind == "Q5_0":
        blocks_NBb[..., 2:6] = np.packbits(codes_NBw >> np.uint8(4), axis=-1, bitorder="little")


def _pack_q4_1(
    blocks_NBb: U8Array,
    codes_NBw: U8Array,
    scales_NB: npt.NDArray[np.generic],
    zeros_NB: npt.NDArray[np.generic],
) -> None:
    exact_NB = -scales_NB.astype(np.float32) * zeros_NB.astype(np.float32)
    with np.errstate(over="ignore"):
        mins_NB = exact_NB.astype(np.float16)
    if not bool(np.isfinite(mins_NB).all()):
        raise ShapeError(
            f"the minimum {float(np.abs(exact_NB).max()):.4g} of a block overflows float16; Q4_1 "
            "cannot hold it"
        )
    blocks_NBb[..., 2:4] = _f16_bytes(mins_NB)
    blocks_NBb[..., 4:] = _packed_nibbles(codes_NBw)


def _pack_q4_k(
    blocks_NBb: U8Array,
    codes_NBw: U8Array,
    scales_NB: npt.NDArray[np.generic],
    zeros_NB: npt.NDArray[np.generic],
) -> None:
    """d = dmin = s, every 6-bit scale 1, every 6-bit minimum z: s * 1 * c - s * z."""
    zeros_NB1 = zeros_NB.astype(np.uint8)[..., None]
    blocks_NBb[..., 2:4] = _f16_bytes(scales_NB)
    blocks_NBb[..., 4:8] = 1
    blocks_NBb[..., 8:12] = zeros_NB1
    # The last four parts keep scale and minimum in one byte; their upper bits, 0 here, lie above.
    blocks_NBb[..., 12:16] = 1 | zeros_NB1 << np.uint8(4)
    pairs = codes_NBw.reshape(*codes_NBw.shape[:2], _PARTS // 2, 2, _PART)
    packed = pairs[..., 0, :] | pairs[..., 1, :] << np.uint8(4)
    blocks_NBb[..., 16:] = packed.reshape(*codes_NBw.shape[:2], -1)


def _unpack_q4_k(blocks_NBb: U8Array) -> I16Array:
    zeros_NB1 = blocks_NBb[..., 8:9]
    heads_NBb = np.concatenate(
        [np.ones_like(blocks_NBb[..., 4:8]), np.repeat(zeros_NB1, 4, axis=-1)], axis=-1
    )
    tails_NBb = np.repeat(1 | zeros_NB1 << np.uint8(4), 4, axis=-1)
    ours = np.concatenate([blocks_NBb[..., 0:2], heads_NBb, tails_NBb], axis=-1)
    if bool((zeros_NB1 > 15).any()) or not np.array_equal(ours, blocks_NBb[..., 2:16]):
        raise ShapeError(
            "a Q4_K block has scales other than 1 or d unlike dmin; it is not an integer grid"
        )
    packed = blocks_NBb[..., 16:].reshape(*blocks_NBb.shape[:2], _PARTS // 2, 1, _PART)
    pairs = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-2)
    codes_NBw: I16Array = pairs.reshape(*blocks_NBb.shape[:2], -1).astype(np.int16)
    codes_NBw -= zeros_NB1.astype(np.int16)
    return codes_NBw


def _packed_nibbles(codes_NB32: U8Array) -> U8Array:
    """32 codes in 16 bytes: element j low, element j + 16 high."""
    return codes_NB32[..., :16] | codes_NB32[..., 16:] << np.uint8(4)


def _nibbles(packed_NB16: U8Array) -> U8Array:
    return np.concatenate([packed_NB16 & np.uint8(15), packed_NB16 >> np.uint8(4)], axis=-1)


def _f16_bytes(values_NB: npt.NDArray[np.generic]) -> U8Array:
    return np.ascontiguousarray(values_NB.astype("<f2"))[..., None].view(np.uint8)


def _f16_values(bytes_NB2: U8Array) -> F16Array:
    return np.ascontiguousarray(bytes_NB2).view("<f2")[..., 0].astype(np.float16)
