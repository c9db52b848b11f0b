"""Lays sections out in files and writes them: streamed, digested on the way, the index last."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcquant.errors import ExportError
from bcquant.io.atomic import AtomicFile
from bcquant.io.package import shard_names
from bcquant.io.package_index import (
    HEADER_BYTES,
    Header,
    ModelBlock,
    Section,
    alignment,
    index_bytes,
    index_to_bytes,
)
from bcquant.io.package_signature import signature_path

from .sections import PlannedSection
from .signing import SigningKey

MB = 1_000_000


@dataclass(frozen=True)
class Layout:
    """Where every section lies.

    Attributes:
        places: (shard, offset) of each section.
        file_bytes: of each shard.
    """

    places: tuple[tuple[int, int], ...]
    file_bytes: tuple[int, ...]


def lay_out(sections: Sequence[PlannedSection], max_file_bytes: int | None) -> Layout:
    """Fill files in order; a section that does not fit begins the next one.

    A section larger than a file gets one of its own that is too large: see `too_large`.
    """
    places: list[tuple[int, int]] = []
    sizes: list[int] = []
    end = HEADER_BYTES + index_bytes(len(sections))
    for section in sections:
        start = _aligned(end, section.kind)
        is_fresh = end == HEADER_BYTES
        if max_file_bytes and not is_fresh and start + section.num_bytes > max_file_bytes:
            sizes.append(end)
            start = _aligned(HEADER_BYTES, section.kind)
        places.append((len(sizes), start))
        end = start + section.num_bytes
    return Layout(tuple(places), (*sizes, end))


def too_large(sections: Sequence[PlannedSection], split_mb: int) -> str | None:
    """Why no files of `split_mb` MB hold the sections, None if they do."""
    largest = max(sections, key=lambda section: section.num_bytes)
    first = HEADER_BYTES + index_bytes(len(sections))
    needed = max(first, _aligned(HEADER_BYTES, largest.kind) + largest.num_bytes)
    if needed <= split_mb * MB:
        return None
    return (
        f"{largest.name} alone makes a file of {-(-needed // MB)} MB; give --split-mb "
        f"{-(-needed // MB)} or more"
    )


def write_package(
    out: Path,
    model: ModelBlock,
    sections: Sequence[PlannedSection],
    layout: Layout,
    progress: Callable[[str, int, int], None],
    key: SigningKey | None = None,
) -> tuple[Path, ...]:
    """Write all files under temporary names; they appear when all are complete, the first last.

    Args:
        out: the file, or what it would be called if there were one.
        progress: told what was written, how many sections are done, and of how many.
        key: signs the package; None = it stays unsigned.
    Returns:
        the files, the signature last.
    Raises:
        ExportError: a file exists or cannot be written; nothing is left behind.
        CheckpointError: a tensor cannot be read any more; nothing is left behind.
    """
    paths = shard_paths(out, len(layout.file_bytes), is_signed=key is not None)
    with contextlib.ExitStack() as stack:
        files: list[AtomicFile] = []
        rows: list[Section] = []
        end = 0
        for section, (shard, offset) in zip(sections, layout.places, strict=True):
            while len(files) <= shard:  # the first may hold the index alone
                end = _begin_next(stack, files, paths, len(sections))
            rows.append(_write_section(files[-1], section, shard, offset, end))
            end = offset + section.num_bytes
            progress(section.name, len(rows), len(sections))
        files[-1].seal()
        index = index_to_bytes(model, rows)
        digest = hashlib.sha256(index).digest()
        for shard, (file, size) in enumerate(zip(files, layout.file_bytes, strict=True)):
            own = index if shard == 0 else b""
            header = Header(shard, len(files), size, len(own), digest)
            file.write_at(0, header.to_bytes() + own)
        if key is not None:
            files.append(_begin_file(stack, paths[-1]))
            files[-1].write(key.sign(digest).to_bytes())
            files[-1].seal()
        _publish(files)
    return paths


def shard_paths(out: Path, num_shards: int, is_signed: bool = False) -> tuple[Path, ...]:
    """The files of an export to `out`, the signature last.

    Raises:
        ExportError: one of them exists.
    """
    paths = tuple(out.with_name(name) for name in shard_names(out.name, num_shards))
    if is_signed:
        paths += (signature_path(paths[0]),)
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ExportError(f"{path}: exists already; remove it or choose another -o")
    return paths


def _begin_next(
    stack: contextlib.ExitStack, files: list[AtomicFile], paths: Sequence[Path], num_sections: int
) -> int:
    """Seal the current file and begin another with room for its header; where that ends."""
    if files:
        files[-1].seal()
    file = _begin_file(stack, paths[len(files)])
    end = HEADER_BYTES + (0 if files else index_bytes(num_sections))
    file.write(bytes(end))
    files.append(file)
    return end


def _begin_file(stack: contextlib.ExitStack, path: Path) -> AtomicFile:
    """A file that is gone with the stack unless it was published."""
    file = AtomicFile(path)
    stack.callback(file.discard)
    return file


def _write_section(
    file: AtomicFile, section: PlannedSection, shard: int, offset: int, end: int
) -> Section:
    data = section.make()
    assert len(data) == section.num_bytes, f"{section.name}: {len(data)} bytes were made"
    file.write(bytes(offset - end))
    file.write(data)
    digest = hashlib.sha256(data).digest()
    return Section(section.kind, section.layer, shard, offset, len(data), digest)


def _publish(files: Sequence[AtomicFile]) -> None:
    """Rename all, the first one last: without it nothing opens. On a failure none stays."""
    shown: list[AtomicFile] = []
    try:
        for file in reversed(files):
            file.publish()
            shown.append(file)
    except BaseException:
        for file in shown:
            with contextlib.suppress(OSError):
                file.path.unlink()
        raise


def _aligned(end: int, kind: int) -> int:
    step = alignment(kind)
    return -(-end // step) * step
