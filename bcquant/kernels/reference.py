"""The kernels in plain numpy: the truth that every tier of csrc is compared with.

Sums run in float64 and results are rounded to float32 once, so a tier may differ by its own
rounding only. Layout: docs/formats/bcq_n16k32_v1.md. Contract: csrc/include/bcq/kernels.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import KernelError, ShapeError

U8Array = npt.NDArray[np.uint8]
F16Array = npt.NDArray[np.float16]
F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]

PANEL_ROWS = 16
UNIT_COLUMNS = 32
SECTION_ALIGN = 64
MAX_BLOCK = 128  # columns that share an activation scale, at most
MAX_FEATURES = 1 << 28
SMALLEST = np.float32(1e-35)  # a block of smaller activations counts as zero
HEADER = struct.Struct("<4sHBBIIIIQQQQQ")


@dataclass(frozen=True)
class Weight:
    """W[n,k] = scales[n,g] * (codes[n,k] - zeros[n,g]), g = k // group_size.

    Attributes:
        codes_NK: uint8; float16 values where bits is 16, which has no scales and no zeros.
        scales_NG: float16, shape (N, G); (N, 0) for 16 bits.
        zeros_NG: uint8; None = every zero is 2^(bits-1).
        bits: 2, 3, 4, 8 or 16.
        group_size: a multiple of 32, or K.
    """

    codes_NK: npt.NDArray[Any]
    scales_NG: F16Array
    zeros_NG: U8Array | None
    bits: int
    group_size: int

    @property
    def group_of_K(self) -> npt.NDArray[np.int64]:
        """The group of each column."""
        return np.arange(self.codes_NK.shape[1]) // self.group_size

    def differences_NK(self) -> F64Array:
        """Codes minus zeros, exact; the values themselves for 16 bits."""
        codes = self.codes_NK.astype(np.float64)
        if self.bits == 16:
            return codes
        if self.zeros_NG is None:
            return codes - (1 << (self.bits - 1))
        return codes - self.zeros_NG.astype(np.float64)[:, self.group_of_K]

    def values_NK(self) -> F64Array:
        """The weight itself, exact."""
        if self.bits == 16:
            return self.differences_NK()
        return self.scales_NG.astype(np.float64)[:, self.group_of_K] * self.differences_NK()


def half_weight(values_NK: F16Array) -> Weight:
    """A weight of float16 values."""
    n, k = values_NK.shape
    return Weight(values_NK, np.empty((n, 0), np.float16), None, 16, k)


def _header(n: int, k: int, bits: int, group_size: int, has_zeros: bool) -> tuple[int, ...]:
    """(G, codes offset, scales offset, zeros offset, total) of a blob."""
    if not (1 <= n <= MAX_FEATURES and 1 <= k <= MAX_FEATURES):
        raise KernelError(f"a weight of {[n, k]}; sides of 1 .. {MAX_FEATURES} are needed")
    if bits not in (2, 3, 4, 8, 16) or not 1 <= group_size <= k:
        raise KernelError(f"{bits} bits with group_size {group_size} have no kernel")
    whole = group_size == k and not (bits == 16 and has_zeros)
    if not whole and (group_size % UNIT_COLUMNS or bits == 16):
        raise KernelError(f"group_size {group_size} has no kernel for {bits} bits; 32 n, or K")

    def aligned(num_bytes: int) -> int:
        return -(-num_bytes // SECTION_ALIGN) * SECTION_ALIGN

    panels, units = -(-n // PANEL_ROWS), -(-k // UNIT_COLUMNS)
    groups = 0 if bits == 16 else -(-k // group_size)
    scales_at = HEADER.size + aligned(panels * units * 64 * bits)
    zeros_at = scales_at + aligned(panels * groups * PANEL_ROWS * 2)
    total = zeros_at + (aligned(panels * groups * PANEL_ROWS) if has_zeros else 0)
    return groups, HEADER.size, scales_at, zeros_at if has_zeros else 0, total


def _panels(array: npt.NDArray[Any], columns: int) -> npt.NDArray[Any]:
    """Zeros around an array, then [panel][row][column]."""
    n, k = array.shape
    rows = -(-n // PANEL_ROWS) * PANEL_ROWS
    padded = np.zeros((rows, columns), array.dtype)
    padded[:n, :k] = array
    return padded.reshape(rows // PANEL_ROWS, PANEL_ROWS, columns)


def _share_bytes(quads: U8Array, width: int) -> U8Array:
    """[..., quad, 64] of codes of 1 .. `width` bits -> quads that share bytes, low bits first."""
    shared = 8 // width
    parts = quads.reshape(*quads.shape[:-2], -1, shared, 64)
    shifted = parts << (np.arange(shared, dtype=np.uint8) * width)[:, None]
    out: U8Array = np.bitwise_or.reduce(shifted, axis=-2)
    return out


def _pack_codes(w: Weight) -> bytes:
    columns = -(-w.codes_NK.shape[1] // UNIT_COLUMNS) * UNIT_COLUMNS
    panels = _panels(w.codes_NK, columns).reshape(-1, PANEL_ROWS, columns // 32, 32)
    if w.bits == 16:  # [panel][unit][column][row]
        return panels.transpose(0, 2, 3, 1).astype("<f2").tobytes()
    quads = panels.reshape(*panels.shape[:3], 8, 4).transpose(0, 2, 3, 1, 4)
    quads = np.ascontiguousarray(quads).reshape(*quads.shape[:3], 64)
    if w.bits != 3:
        return _share_bytes(quads, w.bits).tobytes()
    low, third = _share_bytes(quads & np.uint8(3), 2), _share_bytes(quads >> np.uint8(2), 1)
    return np.concatenate([low, third], axis=2).tobytes()


def pack_weight(w: Weight) -> bytes:
    """A weight as a blob of layout `bcq_n16k32_v1`.

    Raises:
        KernelError: the layout holds no such bits or group size, or a code is too large.
    Source: docs/formats/bcq_n16k32_v1.md. Inverse: `unpack_weight`.
    """
    n, k = w.codes_NK.shape
    has_zeros = w.zeros_NG is not None
    groups, codes_at, scales_at, zeros_at, total = _header(n, k, w.bits, w.group_size, has_zeros)
    if w.bits < 8 and any(
        int(a.max()) >> w.bits for a in (w.codes_NK, w.zeros_NG) if a is not None
    ):
        raise KernelError(f"a code or a zero is above {(1 << w.bits) - 1}")
    blob = bytearray(total)
    HEADER.pack_into(
        blob, 0, b"BCQW", 1, w.bits, has_zeros, n, k, w.group_size, groups, codes_at, scales_at,
        zeros_at, total, 0,
    )  # fmt: skip
    codes = _pack_codes(w)
    blob[codes_at : codes_at + len(codes)] = codes
    for at, array in ((scales_at, w.scales_NG), (zeros_at, w.zeros_NG)):
        if array is not None:
            part = _panels(array, groups).transpose(0, 2, 1).tobytes()  # [panel][group][row]
            blob[at : at + len(part)] = part
    return bytes(blob)


def _unpack_codes(section: U8Array, n: int, k: int, bits: int) -> npt.NDArray[Any]:
    units = -(-k // UNIT_COLUMNS)
    if bits == 16:
        halves = section.view("<f2").reshape(-1, units, UNIT_COLUMNS, PANEL_ROWS)
        return halves.transpose(0, 3, 1, 2).reshape(-1, units * UNIT_COLUMNS)[:n, :k].copy()

    def spread(rows: U8Array, width: int) -> U8Array:
        shifts = (np.arange(8 // width, dtype=np.uint8) * width)[:, None]
        parts: U8Array = rows[..., None, :] >> shifts & np.uint8((1 << width) - 1)
        return parts.reshape(*rows.shape[:2], 8, 64)

    rows = section.reshape(-1, units, bits, 64)
    if bits == 3:
        quads = spread(rows[:, :, :2], 2) | spread(rows[:, :, 2:], 1) << np.uint8(2)
    else:
        quads = spread(rows, bits)
    codes = quads.reshape(-1, units, 8, PANEL_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return codes.reshape(-1, units * UNIT_COLUMNS)[:n, :k].copy()


def unpack_weight(blob: bytes) -> Weight:
    """Inverse of `pack_weight`.

    Raises:
        KernelError: it is no such blob; every number of its header must follow from its shape.
    """
    if len(blob) < HEADER.size:
        raise KernelError(f"a packed weight of {len(blob)} bytes has no whole header")
    magic, version, bits, has_zeros, n, k, group_size, *rest = HEADER.unpack_from(blob)
    if magic != b"BCQW" or version != 1 or has_zeros > 1:
        raise KernelError(f"a packed weight starts with {blob[:8]!r}; BCQW version 1 is needed")
    want = _header(n, k, bits, group_size, bool(has_zeros))
    if tuple(rest) != (*want, 0) or want[-1] != len(blob):
        raise KernelError("a packed weight's header or size contradicts its shape")
    groups, codes_at, scales_at, zeros_at, _ = want
    data, panels = np.frombuffer(blob, np.uint8), -(-n // PANEL_ROWS)
    codes_bytes = panels * -(-k // UNIT_COLUMNS) * 64 * bits

    def grouped(at: int, dtype: str) -> npt.NDArray[Any]:
        flat = np.frombuffer(blob, dtype, panels * groups * PANEL_ROWS, at)
        return flat.reshape(panels, groups, PANEL_ROWS).transpose(0, 2, 1).reshape(-1, groups)[:n]

    codes = _unpack_codes(data[codes_at : codes_at + codes_bytes], n, k, bits)
    if bits == 16:
        return half_weight(codes)
    zeros = grouped(zeros_at, "|u1").copy() if has_zeros else None
    return Weight(codes, grouped(scales_at, "<f2").copy(), zeros, bits, group_size)


def int8_block(w: Weight, per_token: bool) -> int:
    """Columns that share an activation scale.

    Raises:
        KernelError: one scale a token, and a weight of several groups a row.
    """
    k = w.codes_NK.shape[1]
    padded = -(-k // UNIT_COLUMNS) * UNIT_COLUMNS
    if per_token and w.scales_NG.shape[1] > 1:
        raise KernelError("one activation scale a token needs one weight scale a row")
    if per_token or w.scales_NG.shape[1] <= 1:
        return padded if per_token else min(MAX_BLOCK, padded)
    return next(b for b in range(MAX_BLOCK, 0, -UNIT_COLUMNS) if w.group_size % b == 0)


def quantize_activations(x_MK: F32Array, block: int) -> tuple[npt.NDArray[np.int8], F32Array]:
    """int8 codes (M, K) and a scale for each block of columns (M, B): absmax / 127, ties to even.

    A block with a NaN or an infinity has codes 0 and scale NaN. The arithmetic is float32 and
    the same in every tier, bit by bit.
    """
    if x_MK.dtype != np.float32 or x_MK.ndim != 2:
        raise ShapeError(f"x is {x_MK.dtype}{list(x_MK.shape)}; float32 (M, K) is needed")
    m, k = x_MK.shape
    blocks = -(-k // block)
    padded = np.zeros((m, blocks * block), np.float32)
    padded[:, :k] = x_MK
    parts = padded.reshape(m, blocks, block)
    finite = np.isfinite(parts).all(axis=2)
    largest = np.where(finite, np.abs(parts).max(axis=2), np.float32(0))
    usable = largest > SMALLEST
    inverse = np.where(usable, np.float32(127) / np.where(usable, largest, 1), np.float32(0))
    scaled = np.where(usable[..., None], parts, np.float32(0)) * inverse[..., None]
    scales = np.where(usable, largest / np.float32(127), np.float32(0))
    scales = np.where(finite, scales, np.float32(np.nan)).astype(np.float32)
    return np.rint(scaled).astype(np.int8).reshape(padded.shape)[:, :k], scales


def linear_exact(x_MK: F32Array, w: Weight) -> F32Array:
    """y = x @ W.T."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (x_MK.astype(np.float64) @ w.values_NK().T).astype(np.float32)


def linear_int8(x_MK: F32Array, w: Weight, per_token: bool = False) -> F32Array:
    """y with int8 activations: sum over blocks of scale_w * scale_x * an exact integer sum.

    Args:
        per_token: one activation scale a token instead of one a block (`int8_block`).
    Raises:
        KernelError: the weight has several groups and `per_token` is asked for.
    """
    if w.bits == 16:  # float16 weights are never multiplied with int8
        return linear_exact(x_MK, w)
    block = int8_block(w, per_token)
    codes_MK, scales_MB = quantize_activations(x_MK, block)
    columns = np.arange(x_MK.shape[1])
    weights_NK = w.values_NK()
    y = np.zeros((x_MK.shape[0], weights_NK.shape[0]))
    for b in range(scales_MB.shape[1]):
        part = columns // block == b
        sums = codes_MK[:, part].astype(np.float64) @ weights_NK[:, part].T
        y += scales_MB[:, b : b + 1].astype(np.float64) * sums
    return y.astype(np.float32)
