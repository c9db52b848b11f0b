"""SHA-256 of files, bytes and sets of arrays, as lower-case hex."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.dtypes import Array

_CHUNK_BYTES = 16 << 20


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of a byte string."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def digest_arrays(arrays: Mapping[str, Array]) -> str:
    """Hex SHA-256 over names, dtypes, shapes and values; the order of the map does not matter.

    Values are hashed as little-endian C-order bytes, so memory layout and machine do not matter.

    Raises:
        ShapeError: an array holds Python objects.
    """
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.hasobject:
            raise ShapeError(f"{name!r} is {array.dtype}; only plain numbers can be digested")
        dtype = array.dtype.newbyteorder("<")
        # Lengths go first: no two different sets give the same byte stream.
        for text in (name, dtype.str, ",".join(map(str, array.shape))):
            encoded = text.encode("utf-8", "surrogatepass")
            state.update(len(encoded).to_bytes(8, "little") + encoded)
        flat = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK_BYTES):
            state.update(flat[start : start + _CHUNK_BYTES].data)
    return state.hexdigest()
