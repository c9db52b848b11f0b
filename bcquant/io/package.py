"""Reads a package, docs/formats/bcq_package_v1.md: one file or shards, mapped; nothing is trusted.

with open_package("model.bcq") as package:
    package.verify()
    blob = package.data(package.find(WEIGHTS, layer))
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.closing import Closing
from bcquant.io.json_file import parse_json_object
from bcquant.io.mapped_file import CHUNK_BYTES, MappedFile
from bcquant.io.package_index import (
    BLOB_KINDS,
    HEADER_BYTES,
    MAX_LAYERS,
    Header,
    ModelBlock,
    Section,
    index_bytes,
    index_from_bytes,
)
from bcquant.io.package_rules import contents_problem, places_problem, tensor_shape
from bcquant.io.package_signature import Signature, signature_path
from bcquant.io.packed_blob import BLOB_HEADER_BYTES, BlobShape, read_blob_header

SUFFIX = ".bcq"
_FIRST_SHARD = re.compile(r"(.*)-00001-of-(\d{5})\.bcq", re.DOTALL)
_MAX_INDEX_BYTES = index_bytes(18 * MAX_LAYERS + 16)  # more rows than there are kinds


def shard_names(name: str, num_shards: int) -> tuple[str, ...]:
    """File names of a package that would be `name` if it were one file."""
    if num_shards == 1:
        return (name,)
    stem = name.removesuffix(SUFFIX)
    return tuple(f"{stem}-{i:05d}-of-{num_shards:05d}{SUFFIX}" for i in range(1, num_shards + 1))


def open_package(path: str | Path) -> Package:
    """Open a package and check its structure: headers, index, and every blob's own header.

    Args:
        path: the file, or the first of several: the others lie beside it.
    Returns:
        a package; close it or use it as a context manager. Sections are read when asked for, and
        compared with their SHA-256 by `Package.verify`.
    Raises:
        CheckpointError: missing, damaged, no package, or of a version or with a feature that this
            program does not know.
    """
    path = Path(path)
    shards: list[_Shard] = []
    try:
        shards.append(_Shard(path))
        first = _header(shards[0])
        if first.shard != 0:
            raise CheckpointError(
                f"{path}: this is shard {first.shard + 1} of {first.num_shards} of a package; open "
                "the first"
            )
        shards += [_Shard(path.parent / name) for name in _siblings(path, first.num_shards)]
        return Package(path, shards)
    except BaseException:
        for shard in shards:
            shard.close()
        raise


class Package(Closing):
    """An open package; it owns the maps of its files.

    Attributes:
        path: of the first file.
        model: what the model is.
        sections: all of them, in order.
        sha256: hex digest of the index, the package's name for itself.
        optional_features: bits that its writer set.
        shapes: section -> shape and format of its blob.
    """

    def __init__(self, path: Path, shards: Sequence[_Shard]) -> None:
        """Check everything but the sections' bytes.

        Raises:
            CheckpointError: as `open_package`.
        """
        self.path = path
        self._shards = tuple(shards)
        headers = _same_package(shards)
        self.sha256 = headers[0].index_sha256.hex()
        self.optional_features = headers[0].optional
        self.model, self.sections = _checked_index(path, shards[0], headers)
        self._places = {(s.kind, s.layer): s for s in self.sections}
        self.shapes = {s: self._blob(s) for s in self.sections if s.kind in BLOB_KINDS}

    def find(self, kind: int, layer: int | None = None) -> Section | None:
        """A section by its kind and layer, None where the package has none."""
        return self._places.get((kind, layer))

    def data(self, section: Section) -> memoryview:
        """A section's bytes in the mapped file, read-only; valid as long as the view is kept.

        Raises:
            CheckpointError: the file shrank, or the package was closed.
        """
        return self._shards[section.shard].view(section.offset, section.num_bytes)

    def text(self, kind: int) -> str | None:
        """A section of UTF-8 text, None where there is none.

        Raises:
            CheckpointError: it is not UTF-8.
        """
        section = self.find(kind)
        if section is None:
            return None
        try:
            return bytes(self.data(section)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path}: {section.name} is not UTF-8 at byte {error.start}"
            ) from None

    def json(self, kind: int) -> dict[str, Any] | None:
        """A section that holds a JSON object, None where there is none.

        Raises:
            CheckpointError: it is no JSON object.
        """
        section = self.find(kind)
        if section is None:
            return None
        return parse_json_object(bytes(self.data(section)), f"{self.path}: {section.name}")

    def verify(self, progress: Callable[[str, int, int], None] = lambda *a: None) -> None:
        """Compare every section with its SHA-256, and the bytes between them with zeros.

        Args:
            progress: told what is read, how many sections are done, and of how many.
        Raises:
            CheckpointError: something differs; the message names it.
        """
        ends = [HEADER_BYTES + header.index_bytes for header in map(_header, self._shards)]
        for done, section in enumerate(self.sections):
            progress(section.name, done, len(self.sections))
            shard, end = self._shards[section.shard], ends[section.shard]
            if any(shard.bytes_at(end, section.offset - end)):
                raise CheckpointError(f"{shard.path}: bytes before {section.name} are not zero")
            self.verify_section(section)
            ends[section.shard] = section.offset + section.num_bytes

    def verify_section(self, section: Section) -> None:
        """Compare one section with its SHA-256.

        Raises:
            CheckpointError: it differs.
        """
        shard, state = self._shards[section.shard], hashlib.sha256()
        for done in range(0, section.num_bytes, CHUNK_BYTES):
            count = min(CHUNK_BYTES, section.num_bytes - done)
            state.update(shard.bytes_at(section.offset + done, count))
        if state.digest() != section.sha256:
            raise CheckpointError(
                f"{shard.path}: {section.name} is damaged: its SHA-256 is "
                f"{state.hexdigest()} and should be {section.sha256.hex()}; download it again"
            )

    def signature(self) -> Signature | None:
        """What the file beside the package says, None where there is none; it is not verified.

        Raises:
            CheckpointError: it cannot be read, or is damaged.
        """
        path = signature_path(self.path)
        if not os.path.lexists(path):
            return None
        with MappedFile(path) as file:
            found = Signature.from_bytes(file.bytes_at(0, file.size))
        if isinstance(found, str):
            raise CheckpointError(f"{path}: not a signature: {found}; download it again")
        return found

    def close(self) -> None:
        """Unmap, once no view is left; closing twice is fine."""
        for shard in self._shards:
            shard.close()

    def _blob(self, section: Section) -> BlobShape:
        head = self._shards[section.shard].bytes_at(
            section.offset, min(section.num_bytes, BLOB_HEADER_BYTES)
        )
        try:
            shape = read_blob_header(head, section.num_bytes)
        except ShapeError as error:
            raise CheckpointError(f"{self.path}: {section.name}: {error}") from None
        found = (shape.out_features, shape.in_features)
        wanted = tensor_shape(self.model, section.kind)
        if found != wanted:
            raise CheckpointError(
                f"{self.path}: {section.name} is {list(found)}; its model needs "
                f"{list(wanted or ())}"
            )
        return shape


class _Shard(MappedFile):
    """A mapped file that hands out views of itself."""

    def __init__(self, path: Path) -> None:
        self._is_closed = False
        super().__init__(path)

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """Read-only bytes in the map; CheckpointError: not inside the file, or closed."""
        if self._is_closed:
            raise CheckpointError(f"{self.path}: read after the package was closed")
        self._check(offset, num_bytes)
        return memoryview(self._map)[offset : offset + num_bytes]

    def close(self) -> None:
        """Unmap; where views are in use, the last of them does."""
        self._is_closed = True
        with contextlib.suppress(BufferError):
            super().close()


def _siblings(path: Path, num_shards: int) -> tuple[str, ...]:
    if num_shards == 1:
        return ()
    match = _FIRST_SHARD.fullmatch(path.name)
    if match is None or int(match[2]) != num_shards:
        raise CheckpointError(
            f"{path}: it is the first of {num_shards} shards and its name is not that of one; "
            f"give it back its name, NAME-00001-of-{num_shards:05d}{SUFFIX}"
        )
    return shard_names(match[1] + SUFFIX, num_shards)[1:]


def _header(shard: _Shard) -> Header:
    """A shard's header, compared with the size of its file."""
    found = Header.from_bytes(shard.bytes_at(0, min(HEADER_BYTES, shard.size)))
    if isinstance(found, str):
        raise CheckpointError(f"{shard.path}: cannot be read as a package: {found}")
    if found.file_bytes != shard.size:
        raise CheckpointError(
            f"{shard.path}: the file has {shard.size} bytes and its header says "
            f"{found.file_bytes}; download it again"
        )
    if found.index_bytes > min(shard.size - HEADER_BYTES, _MAX_INDEX_BYTES):
        raise CheckpointError(
            f"{shard.path}: an index of {found.index_bytes} bytes does not fit; download it again"
        )
    return found


def _same_package(shards: Sequence[_Shard]) -> list[Header]:
    headers = [_header(shard) for shard in shards]
    for number, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        if (header.shard, header.num_shards) != (number, len(shards)):
            raise CheckpointError(
                f"{shard.path}: it is shard {header.shard + 1} of {header.num_shards}, not "
                f"{number + 1} of {len(shards)}; give it back its own name"
            )
        if header.index_sha256 != headers[0].index_sha256:
            raise CheckpointError(
                f"{shard.path}: it is of another package than {shards[0].path.name}; download both "
                "again"
            )
    return headers


def _checked_index(
    path: Path, shard: _Shard, headers: Sequence[Header]
) -> tuple[ModelBlock, tuple[Section, ...]]:
    data = shard.bytes_at(HEADER_BYTES, headers[0].index_bytes)
    if hashlib.sha256(data).digest() != headers[0].index_sha256:
        raise CheckpointError(f"{path}: the index is damaged (SHA-256); download it again")
    found = index_from_bytes(data)
    problem = found if isinstance(found, str) else None
    if not isinstance(found, str):
        problem = places_problem(headers, found[1]) or contents_problem(*found)
    if problem is not None or isinstance(found, str):
        raise CheckpointError(f"{path}: not a sound package: {problem}; download it again")
    return found[0], tuple(found[1])
