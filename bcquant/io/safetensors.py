"""Safetensors files: an 8-byte length, a JSON header, then the tensors without gaps.

Source: the format section of the safetensors project; every rule of it is checked here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.closing import Closing
from bcquant.io.dtypes import STORAGE, Array, TensorInfo, shown, tensor_bytes
from bcquant.io.json_file import parse_json_object
from bcquant.io.mapped_file import MappedFile
from bcquant.io.reader import CheckpointReader, Rows, find, row_range

# The limit that the reference implementation sets.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"


class SafetensorsFile(Closing):
    """One mapped file; the whole header is validated before anything is read.

    Attributes:
        path: the file.
        metadata: the string pairs under `__metadata__`.
        tensors: name -> TensorInfo, in header order.
    Raises:
        CheckpointError: the file is truncated or breaks a rule of the format; the message names
            the tensor, the number found and the number needed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path)
        try:
            self.metadata: dict[str, str] = {}
            self.tensors: dict[str, TensorInfo] = {}
            self._offsets: dict[str, int] = {}
            self._parse()
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str, rows: Rows | None = None) -> Array:
        """A fresh array in stored dtype (BF16 and 8-bit floats as bits); rows of axis 0.

        Raises:
            CheckpointError: there is no such tensor, or the file shrank.
            ShapeError: `rows` is not inside the outermost axis.
        """
        info = find(self.tensors, name, self.path)
        start, stop = row_range(info, rows)
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        row_bytes = tensor_bytes(info.dtype, info.shape[1:])
        raw = np.empty(tensor_bytes(info.dtype, shape), np.uint8)
        self._file.copy_into(raw, self._offsets[name] + start * row_bytes)
        # A bool that is neither 0 nor 1 has no meaning in numpy.
        values: Array = raw != 0 if info.dtype == "BOOL" else raw.view(STORAGE[info.dtype])
        return values.reshape(shape)

    def close(self) -> None:
        """Unmap; closing twice is fine."""
        self._file.close()

    def _fail(self, message: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {message}")

    def _parse(self) -> None:
        size = self._file.size
        if size < 10:
            self._fail(f"{size} bytes are too few for a safetensors file; download it again")
        length = int.from_bytes(self._file.bytes_at(0, 8), "little")
        if length > MAX_HEADER_BYTES:
            self._fail(
                f"the header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed; "
                "it is not a safetensors file"
            )
        if length > size - 8:
            self._fail(
                f"the header claims {length} bytes but only {size - 8} follow; download it again"
            )
        text = self._file.bytes_at(8, length)
        if not text.startswith(b"{"):
            self._fail("the header does not begin with '{'; it is not a safetensors file")
        header = parse_json_object(text, f"{self.path}: header")
        self._parse_metadata(header.pop(METADATA_KEY, {}))
        spans = [self._parse_entry(name, entry, 8 + length) for name, entry in header.items()]
        self._check_layout(spans, 8 + length)

    def _parse_metadata(self, value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            self._fail(f"{METADATA_KEY} is not a map of strings")
        self.metadata = value

    def _parse_entry(self, name: str, entry: Any, data_start: int) -> tuple[int, int, str]:
        """Check one header entry alone; return its absolute byte span and its name."""
        label = shown(name)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            self._fail(f"{label}: the entry needs exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in STORAGE:
            self._fail(f"{label}: dtype is {shown(dtype)}; bcquant reads {', '.join(STORAGE)}")
        if not _is_counts(shape):
            self._fail(f"{label}: shape is {shown(shape)}; a list of integers >= 0 is needed")
        if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self._fail(f"{label}: data_offsets are {shown(offsets)}; [begin, end] is needed")
        try:
            need = tensor_bytes(dtype, shape)
        except ShapeError as error:
            self._fail(f"{label}: {error}")
        begin, end = offsets
        if end - begin != need:
            self._fail(
                f"{label}: {dtype}{shown(shape)} needs {need} bytes but its offsets "
                f"span {end - begin}"
            )
        if data_start + end > self._file.size:
            self._fail(
                f"{label} ends at byte {data_start + end} but the file has {self._file.size}; "
                "download it again"
            )
        self.tensors[name] = TensorInfo(name, dtype, tuple(shape))
        self._offsets[name] = data_start + begin
        return (data_start + begin, data_start + end, name)

    def _check_layout(self, spans: list[tuple[int, int, str]], data_start: int) -> None:
        """The tensors tile the data part: no overlap, no gap, nothing after the last."""
        position = data_start
        for begin, end, name in sorted(spans):
            if begin != position:
                word = "an overlap" if begin < position else "a gap"
                self._fail(
                    f"{shown(name)} begins at byte {begin} but the one before it ends at "
                    f"{position}; {word} is not allowed"
                )
            position = end
        if position != self._file.size:
            self._fail(
                f"the tensors end at byte {position} but the file has {self._file.size}; "
                "download it again"
            )


class SafetensorsCheckpoint(CheckpointReader):
    """A checkpoint of one or more safetensors files."""

    kind = "safetensors"

    def __init__(
        self,
        path: Path,
        files: list[Path],
        weight_map: dict[str, str] | None,
        config: dict[str, Any],
    ) -> None:
        """Open and validate every shard.

        Args:
            path: what the user named.
            files: the shards.
            weight_map: tensor -> file name from the index; None for a single file. Tensors of a
                shard that the index does not list are ignored, as other loaders do.
            config: parsed config.json.
        Raises:
            CheckpointError: a shard is missing or broken, or the index names an absent tensor.
        """
        self.path, self.config, self.metadata, self.tensors = path, config, {}, {}
        self._shards: dict[str, SafetensorsFile] = {}
        self._home: dict[str, SafetensorsFile] = {}
        try:
            for file in files:
                self._shards[file.name] = SafetensorsFile(file)
            if weight_map is None:
                weight_map = {n: f.name for f in files for n in self._shards[f.name].tensors}
            for name, file_name in weight_map.items():
                shard = self._shards[file_name]
                if name not in shard.tensors:
                    raise CheckpointError(
                        f"{path}: the index puts {shown(name)} in {file_name}, which does not hold "
                        "it; download both again"
                    )
                self.tensors[name] = shard.tensors[name]
                self._home[name] = shard
        except BaseException:
            self.close()
            raise

    def read(self, name: str, rows: Rows | None = None) -> Array:
        """See `CheckpointReader.read`."""
        find(self.tensors, name, self.path)
        return self._home[name].read(name, rows)

    def close(self) -> None:
        """Unmap every shard."""
        for shard in self._shards.values():
            shard.close()


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)
