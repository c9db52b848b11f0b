"""GGUF checkpoints: mapped, and dequantized by the `gguf` package a few rows at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import STORAGE, Array, shown
from bcquant.io.gguf_header import GgufTensor, read_header
from bcquant.io.mapped_file import MappedFile
from bcquant.io.reader import CheckpointReader, Rows, find, row_range

# Float32 bytes dequantized at a time; the package needs a few times that for its intermediates.
_CHUNK_BYTES = 16 << 20


class GgufCheckpoint(CheckpointReader):
    """One GGUF file; names and shapes are the file's own (numpy order: (N, K) for a weight).

    Plain types come back as stored (BF16 as uint16 bits), block types as float32.

    Raises:
        CheckpointError: the header is refused (see `read_header`).
    """

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        header = read_header(path)
        self.config: dict[str, Any] = {}
        self.metadata = header.metadata
        self._places = header.tensors
        self.tensors = {name: place.info for name, place in header.tensors.items()}
        self._file = MappedFile(path)

    def read(self, name: str, rows: Rows | None = None) -> Array:
        """See `CheckpointReader.read`; only the blocks of the asked rows are dequantized.

        Raises:
            CheckpointError: also when the `gguf` package cannot dequantize the type.
        """
        info = find(self.tensors, name, self.path)
        place = self._places[name]
        start, stop = row_range(info, rows)
        if info.dtype in STORAGE:
            item = STORAGE[info.dtype]
            step = math.prod(info.shape[1:]) * item.itemsize
            raw = self._raw(place, start * step, (stop - start) * step)
            return raw.view(item).reshape(stop - start, *info.shape[1:])
        if len(info.shape) == 1:
            # Blocks do not end at arbitrary elements of a vector, so all of it is dequantized.
            return self._dequantized(place, 0, 1).reshape(-1)[start:stop].copy()
        inner = math.prod(info.shape[1:-1])
        values = self._dequantized(place, start * inner, stop * inner)
        return values.reshape(stop - start, *info.shape[1:])

    def close(self) -> None:
        """Unmap; closing twice is fine."""
        self._file.close()

    def _raw(self, place: GgufTensor, begin: int, num_bytes: int) -> Array:
        raw = np.empty(num_bytes, np.uint8)
        self._file.copy_into(raw, place.offset + begin)
        return raw

    def _dequantized(self, place: GgufTensor, start: int, stop: int) -> Array:
        """Float32 (rows, width) of the innermost rows `start` to `stop`."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        width = place.info.shape[-1]
        kind = GGMLQuantizationType(place.ggml_type)
        out = np.empty((stop - start, width), np.float32)
        step = max(1, _CHUNK_BYTES // (4 * width))
        for first in range(start, stop, step):
            count = min(step, stop - first)
            raw = self._raw(place, first * place.row_bytes, count * place.row_bytes)
            try:
                # Damaged scales may be infinite; what the weights then are is not for io to judge.
                with np.errstate(all="ignore"):
                    values = dequantize(raw.reshape(count, place.row_bytes), kind)
            except NotImplementedError as error:
                raise CheckpointError(
                    f"{self.path}: {shown(place.info.name)} has the type {kind.name}, which the "
                    "gguf package cannot dequantize; use a file of another type"
                ) from error
            out[first - start : first - start + count] = values
        return out
