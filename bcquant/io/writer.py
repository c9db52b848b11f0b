"""Safetensors writers: one file or shards, streamed, atomic, the same bytes for the same input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bcquant.errors import ExportError, ShapeError
from bcquant.io.atomic import (
    AtomicFile,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    json_bytes,
    remove_partials,
)
from bcquant.io.dtypes import STORAGE, Array, RawTensor, dtype_name, shown, tensor_bytes
from bcquant.io.safetensors import MAX_HEADER_BYTES, METADATA_KEY

__all__ = [
    "RawTensor",
    "ShardPlan",
    "TensorSpec",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "check_writable",
    "plan_shards",
    "remove_partials",
    "spec_of",
    "write_safetensors",
    "write_sharded",
]

Tensor = Array | RawTensor
Fetch = Callable[[str], Tensor]


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor will be, known before its data.

    Attributes:
        name: in the file.
        dtype: safetensors spelling.
        shape: numpy order.
    Raises:
        ExportError: the name is empty or reserved, or the format cannot hold dtype and shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))
        if not self.name or self.name == METADATA_KEY:
            raise ExportError(f"tensor name {self.name!r} cannot be used in a safetensors file")
        try:
            tensor_bytes(self.dtype, self.shape)
        except ShapeError as error:
            raise ExportError(f"{shown(self.name)}: {error}") from error

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True)
class ShardPlan:
    """Which tensor goes to which file.

    Attributes:
        file_names: one a shard.
        shards: the specs of each, in the order they were given.
    """

    file_names: tuple[str, ...]
    shards: tuple[tuple[TensorSpec, ...], ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors, headers not counted."""
        return sum(spec.num_bytes for shard in self.shards for spec in shard)

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor name -> file name."""
        pairs = zip(self.file_names, self.shards, strict=True)
        return {spec.name: file for file, shard in pairs for spec in shard}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """The spec of a tensor in memory.

    Raises:
        ExportError: its dtype has no safetensors name.
    """
    try:
        dtype = tensor.dtype if isinstance(tensor, RawTensor) else dtype_name(tensor.dtype)
    except ShapeError as error:
        raise ExportError(f"{shown(name)}: {error}") from error
    return TensorSpec(name, dtype, tuple(tensor.shape))


def plan_shards(
    specs: Sequence[TensorSpec], max_shard_bytes: int, stem: str = "model"
) -> ShardPlan:
    """Cut the tensors, in order, into shards of at most `max_shard_bytes` of data.

    A larger tensor gets a shard of its own.

    Raises:
        ExportError: no tensors, a name twice, or `max_shard_bytes` below 1.
    """
    if max_shard_bytes < 1:
        raise ExportError(f"max_shard_bytes is {max_shard_bytes}; at least 1 is needed")
    if not specs:
        raise ExportError("there are no tensors to write")
    _check_unique(specs)
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.num_bytes
    count = len(shards)
    names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        names = [f"{stem}.safetensors"]
    return ShardPlan(tuple(names), tuple(map(tuple, shards)))


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one file atomically; the order of `tensors` is kept in the header.

    The data has the same order unless that would misalign a tensor; then wider types go first.

    Raises:
        ExportError: a dtype or name cannot be stored, or the file cannot be written; nothing is
            left behind and an old file is untouched.
    """
    specs = [spec_of(name, tensor) for name, tensor in tensors.items()]
    with atomic_file(Path(path)) as file:
        _write_body(file, specs, tensors.__getitem__, metadata or {})


def write_sharded(
    out_dir: str | Path,
    specs: Sequence[TensorSpec],
    fetch: Fetch,
    max_shard_bytes: int,
    metadata: Mapping[str, str] | None = None,
    stem: str = "model",
) -> ShardPlan:
    """Write a checkpoint, asking `fetch` for one tensor at a time; all files appear at the end.

    One shard is `model.safetensors`; more are `model-0000x-of-0000y.safetensors` with
    `model.safetensors.index.json` written last.

    Args:
        specs: every tensor, in file order.
        fetch: called once a tensor, in file order (see `write_safetensors`).
        max_shard_bytes: data bytes a shard.
    Returns:
        the plan that was carried out.
    Raises:
        ExportError: too little space, a fetched tensor differs from its spec, `out_dir` holds
            weight files of another checkpoint, or a write fails. No unfinished file remains.
    """
    folder = Path(out_dir)
    plan = plan_shards(specs, max_shard_bytes, stem)
    _refuse_foreign(folder, plan, stem)
    check_writable(folder, plan.total_bytes)
    with ExitStack() as stack:
        files: list[AtomicFile] = []
        for file_name, shard in zip(plan.file_names, plan.shards, strict=True):
            file = _begin(stack, folder / file_name)
            _write_body(file, shard, fetch, metadata or {})
            file.seal()
            files.append(file)
        if len(plan.shards) > 1:
            file = _begin(stack, folder / f"{stem}.safetensors.index.json")
            file.write(json_bytes(file.path, _index(plan)))
            file.seal()
            files.append(file)
        for file in files:
            file.publish()
    return plan


def _begin(stack: ExitStack, path: Path) -> AtomicFile:
    file = AtomicFile(path)
    stack.callback(file.discard)
    return file


def _index(plan: ShardPlan) -> dict[str, object]:
    return {
        "metadata": {"total_size": plan.total_bytes},
        "weight_map": dict(sorted(plan.weight_map.items())),
    }


def _refuse_foreign(folder: Path, plan: ShardPlan, stem: str) -> None:
    """Left-over shards or a left-over index would make the folder ambiguous to every loader."""
    pattern = re.compile(
        re.escape(stem) + r"(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.IGNORECASE
    )
    ours = set(plan.file_names)
    if len(plan.shards) > 1:
        ours.add(f"{stem}.safetensors.index.json")
    found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    for name in found:
        if pattern.fullmatch(name) and name not in ours:
            raise ExportError(
                f"{folder}: it already holds {name} of another checkpoint; "
                "delete that checkpoint or write to an empty folder"
            )


def _write_body(
    file: AtomicFile, specs: Sequence[TensorSpec], fetch: Fetch, metadata: Mapping[str, str]
) -> None:
    """Header and data of one safetensors file."""
    ordered = _aligned_order(specs)
    file.write(_header(specs, ordered, metadata, file.path))
    for spec in ordered:
        tensor = fetch(spec.name)
        got = spec_of(spec.name, tensor)
        if got != spec:
            raise ExportError(
                f"{file.path}: {shown(spec.name)} is {got.dtype}{list(got.shape)}; "
                f"{spec.dtype}{list(spec.shape)} was announced"
            )
        file.write(_bytes_of(tensor))


def _aligned_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The given order, or, if a tensor would start off its own width, widest types first.

    The format has no padding between tensors, and loaders that map a file want aligned elements.
    """
    offset = 0
    for spec in specs:
        if offset % STORAGE[spec.dtype].itemsize:
            return sorted(specs, key=lambda s: -STORAGE[s.dtype].itemsize)
        offset += spec.num_bytes
    return list(specs)


def _header(
    specs: Sequence[TensorSpec],
    ordered: Iterable[TensorSpec],
    metadata: Mapping[str, str],
    path: Path,
) -> bytes:
    _check_unique(specs)
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items()):
        raise ExportError(f"{path}: metadata must map strings to strings")
    begins: dict[str, int] = {}
    offset = 0
    for spec in ordered:
        begins[spec.name] = offset
        offset += spec.num_bytes
    header: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    for spec in specs:
        begin = begins[spec.name]
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.num_bytes],
        }
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExportError(f"{path}: a name or a metadata value is not valid Unicode") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise ExportError(
            f"{path}: the header has {len(text)} bytes; {MAX_HEADER_BYTES} is the limit: use shards"
        )
    return len(text).to_bytes(8, "little") + text


def _check_unique(specs: Sequence[TensorSpec]) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise ExportError(f"the tensor {shown(spec.name)} was given twice")
        seen.add(spec.name)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Little-endian C-order bytes; a view where the array has that form already."""
    array = tensor.data if isinstance(tensor, RawTensor) else tensor
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data
