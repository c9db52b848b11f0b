"""The 64 bytes before a packed weight (docs/formats/bcq_n16k32_v1.md), for who maps a package.

The weight itself is packed and computed by `bcquant.kernels`; a file's reader needs its size only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bcquant.errors import ShapeError

BLOB_HEADER_BYTES = 64

_HEADER = struct.Struct("<4sHBBIIIIQQQQQ")
_MAGIC, _VERSION = b"BCQW", 1
_PANEL_ROWS, _UNIT_COLUMNS, _ALIGN = 16, 32, 64
_MAX_SIDE = 1 << 28


@dataclass(frozen=True)
class BlobShape:
    """All that a blob's header says; the rest follows.

    Attributes:
        out_features: N, 1 .. 2^28.
        in_features: K, 1 .. 2^28.
        bits: 2, 3, 4 or 8; 16 for float16 values.
        group_size: a multiple of 32 below K, or K; always K for 16 bits.
        has_zeros: zeros are stored; never for 16 bits.
    Raises:
        ShapeError: there is no such blob.
    """

    out_features: int
    in_features: int
    bits: int
    group_size: int
    has_zeros: bool = False

    def __post_init__(self) -> None:
        n, k, g = self.out_features, self.in_features, self.group_size
        is_whole = g == k
        is_half = self.bits == 16
        if not (1 <= n <= _MAX_SIDE and 1 <= k <= _MAX_SIDE):
            raise ShapeError(f"a packed weight of {[n, k]}; sides of 1 .. {_MAX_SIDE} are needed")
        if self.bits not in (2, 3, 4, 8, 16) or (is_half and (self.has_zeros or not is_whole)):
            raise ShapeError(f"no packed weight has {self.bits} bits and groups of {g}")
        if not is_whole and not (0 < g < k and g % _UNIT_COLUMNS == 0):
            raise ShapeError(
                f"groups of {g} in rows of {k}; a multiple of 32, or the row, is needed"
            )

    @property
    def num_groups(self) -> int:
        """G; 0 for float16 values."""
        return 0 if self.bits == 16 else -(-self.in_features // self.group_size)

    @property
    def num_bytes(self) -> int:
        """Of the whole blob."""
        return self._ends()[2]

    def header(self) -> bytes:
        """The blob's first 64 bytes."""
        scales_at, zeros_at, total = self._ends()
        return _HEADER.pack(
            _MAGIC, _VERSION, self.bits, self.has_zeros, self.out_features, self.in_features,
            self.group_size, self.num_groups, BLOB_HEADER_BYTES, scales_at,
            zeros_at if self.has_zeros else 0, total, 0,
        )  # fmt: skip

    def _ends(self) -> tuple[int, int, int]:
        """Where codes and scales end, padded, and the blob."""
        panels = -(-self.out_features // _PANEL_ROWS)
        units = -(-self.in_features // _UNIT_COLUMNS)
        scales_at = BLOB_HEADER_BYTES + _aligned(panels * units * 64 * self.bits)
        zeros_at = scales_at + _aligned(panels * self.num_groups * _PANEL_ROWS * 2)
        zeros = panels * self.num_groups * _PANEL_ROWS if self.has_zeros else 0
        return scales_at, zeros_at, zeros_at + _aligned(zeros)


def read_blob_header(header: bytes, num_bytes: int) -> BlobShape:
    """What the first 64 bytes of a blob of `num_bytes` bytes say; nothing in them is trusted.

    Raises:
        ShapeError: they are no header of this version, or not that of a blob of this size.
    """
    if len(header) != BLOB_HEADER_BYTES or header[:4] != _MAGIC:
        raise ShapeError("no packed weight begins here")
    _, version, bits, has_zeros, n, k, group_size, *_ = _HEADER.unpack(header)
    if version != _VERSION:
        raise ShapeError(f"a packed weight of version {version}; update bcquant")
    shape = BlobShape(n, k, bits, group_size, bool(has_zeros & 1))
    if shape.header() != header or shape.num_bytes != num_bytes:
        raise ShapeError("the header of a packed weight contradicts itself or its size")
    return shape


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN
