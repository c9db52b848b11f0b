"""The header of a GGUF file: key/values and tensor table, every number checked before it is used.

Source: the GGUF specification of the ggml project. The `gguf` package parses the same header but
trusts its counts, so a hostile file can make it loop for hours; here a count is compared with the
bytes that are left before anything is read or allocated.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import MAX_BYTES, STORAGE, TensorInfo, shown
from bcquant.io.mapped_file import MappedFile

# The largest vocabularies (256 k tokens with merges) take about 20 MB.
MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 1 << 20
MAX_DIMS = 4
_MAX_NESTING = 4
_STRING, _ARRAY = 8, 9
# Value type -> little-endian dtype of the scalars; 7 is bool in one byte.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        info: name, dtype ("F16" or "GGUF:Q4_1") and numpy-order shape, innermost axis last.
        ggml_type: the type's number in ggml.
        row_bytes: bytes of one innermost row.
        offset: first byte, from the start of the file.
    """

    info: TensorInfo
    ggml_type: int
    row_bytes: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.info.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data, plus the places of the tensors in file order."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Parse and validate the header of a GGUF file of version 2 or 3, little-endian.

    Raises:
        CheckpointError: truncated, another version or byte order, a count or length beyond the
            file, a duplicate key, an unknown type, or tensors that overlap or leave the file.
    """
    with MappedFile(path):
        pass  # Refuses what is not a regular, non-empty file, with its own messages.
    try:
        with open(path, "rb") as file:
            return _HeaderParser(path, file).parse()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


class _HeaderParser:
    """A cursor that never moves past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0

    def parse(self) -> GgufHeader:
        if self._take(4, "the magic") != b"GGUF":
            self._fail("it does not begin with 'GGUF'; it is not a GGUF file")
        version = self._u32("the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian" if swapped in (2, 3) else f"version {version}"
            self._fail(f"a {kind} file; little-endian version 2 or 3 is read: convert it again")
        num_tensors = self._count("the tensor count", 24, MAX_TENSORS)
        num_keys = self._count("the key count", 13, MAX_TENSORS)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a key")
            if key in metadata:
                self._fail(f"the key {shown(key)} appears twice; convert it again")
            metadata[key] = self._value(self._u32(shown(key)), shown(key), 0)
        entries = [self._tensor_entry() for _ in range(num_tensors)]
        if metadata.get("split.count", 1) != 1:
            self._fail(
                f"one of {shown(metadata['split.count'])} parts of a split GGUF; merge them first "
                "with 'llama-gguf-split --merge'"
            )
        return GgufHeader(metadata, self._place(entries, metadata))

    def _fail(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self._path}: {message}")

    def _take(self, count: int, what: str) -> bytes:
        end = self._position + count
        if end > self._size:
            self._fail(
                f"{what} ends at byte {shown(end)} but the file has {self._size}; download it again"
            )
        if end > MAX_HEADER_BYTES:
            self._fail(f"the header is longer than {MAX_HEADER_BYTES} bytes at {what}")
        data = self._file.read(count)
        if len(data) != count:
            self._fail(f"the file shrank while {what} was read; do not change it meanwhile")
        self._position = end
        return data

    def _u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _u64(self, what: str) -> int:
        return int.from_bytes(self._take(8, what), "little")

    def _count(self, what: str, min_item_bytes: int, limit: int) -> int:
        """A 64-bit count whose items, at their smallest, still fit into the rest of the file."""
        count = self._u64(what)
        left = self._size - self._position
        if count > limit or count * min_item_bytes > left:
            self._fail(
                f"{what} is {count} but {left} bytes are left, for at most "
                f"{min(limit, left // min_item_bytes)} items; download it again"
            )
        return count

    def _string(self, what: str) -> str:
        data = self._take(self._u64(f"the length of {what}"), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self._fail(f"{what} is not UTF-8 at its byte {error.start}; convert the file again")

    def _value(self, value_type: int, key: str, depth: int) -> Any:
        if value_type == _STRING:
            return self._string(key)
        if value_type == _ARRAY:
            return self._array(key, depth)
        dtype = self._scalar_dtype(value_type, key)
        return self._scalars(dtype, 1, key)[0]

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth == _MAX_NESTING:
            self._fail(f"{key} nests arrays more than {_MAX_NESTING} deep; convert it again")
        item_type = self._u32(key)
        if item_type in (_STRING, _ARRAY):
            count = self._count(f"the length of {key}", 8, MAX_HEADER_BYTES)
            return [self._value(item_type, key, depth + 1) for _ in range(count)]
        dtype = self._scalar_dtype(item_type, key)
        count = self._count(f"the length of {key}", dtype.itemsize, MAX_HEADER_BYTES)
        return self._scalars(dtype, count, key)

    def _scalar_dtype(self, value_type: int, key: str) -> np.dtype[Any]:
        if value_type not in _SCALARS:
            self._fail(f"{key} has the unknown value type {value_type}; update bcquant")
        return np.dtype(_SCALARS[value_type])

    def _scalars(self, dtype: np.dtype[Any], count: int, key: str) -> list[Any]:
        data = self._take(count * dtype.itemsize, key)
        if dtype.kind == "b":
            return [byte != 0 for byte in data]
        values: list[Any] = np.frombuffer(data, dtype).tolist()
        return values

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, numpy-order shape, ggml type number, offset in the data part."""
        name = self._string("a tensor name")
        label = shown(name)
        num_dims = self._u32(label)
        if not 1 <= num_dims <= MAX_DIMS:
            self._fail(f"{label} has {num_dims} axes; 1 to {MAX_DIMS} are allowed")
        dims = struct.unpack(f"<{num_dims}Q", self._take(8 * num_dims, label))
        ggml_type, offset = struct.unpack("<IQ", self._take(12, label))
        # Their product is bounded too, so that no later size calculation grows without limit.
        if 0 in dims or math.prod(dims) > MAX_BYTES:
            self._fail(f"{label} has the shape {list(dims)[::-1]}; it cannot be held")
        return name, tuple(reversed(dims)), ggml_type, offset

    def _place(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], metadata: dict[str, Any]
    ) -> dict[str, GgufTensor]:
        """Turn entries into checked places inside the file."""
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & alignment - 1:
            self._fail(f"general.alignment is {shown(alignment)}; a power of two is needed")
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, ggml_type, offset in entries:
            if name in tensors:
                self._fail(f"the tensor {shown(name)} appears twice; convert it again")
            if offset % alignment:
                self._fail(f"{shown(name)}: its offset {offset} is not a multiple of {alignment}")
            dtype, row_bytes = self._row_layout(name, ggml_type, shape[-1])
            info = TensorInfo(name, dtype, shape)
            tensors[name] = GgufTensor(info, ggml_type, row_bytes, data_start + offset)
        end, previous = data_start, "the header"
        for tensor in sorted(tensors.values(), key=lambda t: t.offset):
            label = shown(tensor.info.name)
            if tensor.offset < end:
                self._fail(f"{label} begins at byte {tensor.offset}, inside {previous}")
            end, previous = tensor.offset + tensor.num_bytes, label
            if end > self._size:
                self._fail(
                    f"{label} ends at byte {end} but the file has {self._size}; download it again"
                )
        return tensors

    def _row_layout(self, name: str, ggml_type: int, width: int) -> tuple[str, int]:
        """dtype name and bytes of a row of `width` elements."""
        known = _block_sizes()
        if ggml_type not in known:
            self._fail(f"{shown(name)} has the unknown ggml type {ggml_type}; update gguf")
        kind, block, block_bytes = known[ggml_type]
        if width % block:
            self._fail(f"{shown(name)}: a row of {width} is not a multiple of {kind}'s {block}")
        return (kind if kind in STORAGE else f"GGUF:{kind}"), width // block * block_bytes


@functools.cache
def _block_sizes() -> dict[int, tuple[str, int, int]]:
    """ggml type number -> name, elements and bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
