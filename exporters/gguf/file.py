"""A GGUF version 3 file: typed key/values, a tensor table, and tensor data written as it is made.

Source: the GGUF specification of the ggml project; FORMATS.md section 4. Same input, same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.io.atomic import atomic_file

Array = npt.NDArray[Any]

ALIGNMENT = 32
_VERSION = 3
_STRING, _ARRAY = 8, 9
# Kind of a value -> its number in the format and, for scalars, its little-endian form.
_SCALARS = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?")}
_ITEMS = {"u32": "<u4", "i32": "<i4", "f32": "<f4"}


@dataclass(frozen=True)
class Value:
    """A metadata value.

    Attributes:
        kind: "u32", "i32", "f32", "bool" or "string".
        data: one value, or a list of them: then it is an array of that kind.
    """

    kind: str
    data: Any

    def encoded(self) -> bytes:
        """Type number and value as the file holds them."""
        if not isinstance(self.data, list):
            if self.kind == "string":
                return struct.pack("<I", _STRING) + _string(self.data)
            number, form = _SCALARS[self.kind]
            return struct.pack("<I", number) + struct.pack(form, self.data)
        if self.kind == "string":
            head = struct.pack("<IIQ", _ARRAY, _STRING, len(self.data))
            return head + b"".join(map(_string, self.data))
        head = struct.pack("<IIQ", _ARRAY, _SCALARS[self.kind][0], len(self.data))
        return head + np.asarray(self.data, _ITEMS[self.kind]).tobytes()


Metadata = dict[str, Value]


def u32(value: int) -> Value:
    """An unsigned 32-bit number."""
    return Value("u32", value)


def f32(value: float) -> Value:
    """A float32."""
    return Value("f32", value)


def text(value: str) -> Value:
    """A string."""
    return Value("string", value)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        ggml_type: its type's number in ggml.
        shape: numpy order, innermost last.
        num_bytes: of the data.
        parts: yields arrays whose bytes, in order, are the data; called once a write.
    """

    name: str
    ggml_type: int
    shape: tuple[int, ...]
    num_bytes: int
    parts: Callable[[], Iterable[Array]]


def header(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    """Everything before the tensor data, padded to where it begins."""
    out = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_string(key), value.encoded()]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out.append(_string(tensor.name))
        out.append(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        out.append(struct.pack("<IQ", tensor.ggml_type, offset))
        offset += padded(tensor.num_bytes)
    data = b"".join(out)
    return data + bytes(padded(len(data)) - len(data))


def padded(num_bytes: int) -> int:
    """The next multiple of the alignment."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def file_size(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> int:
    """Bytes of the file that `write_file` makes."""
    return len(header(metadata, tensors)) + sum(padded(t.num_bytes) for t in tensors)


def write_file(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor],
    progress: Callable[[int], None],
) -> None:
    """Write the file under a temporary name and rename it; one part of one tensor is in memory.

    Args:
        progress: called with the number of tensors written.
    Raises:
        ExportError: it cannot be written; nothing is left behind.
    """
    with atomic_file(path) as file:
        file.write(header(metadata, tensors))
        for done, tensor in enumerate(tensors, 1):
            written = 0
            for part in tensor.parts():
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                file.write(data.data)
                written += data.nbytes
            assert written == tensor.num_bytes, f"{tensor.name}: {written} bytes were made"
            file.write(bytes(padded(written) - written))
            progress(done)


def _string(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
