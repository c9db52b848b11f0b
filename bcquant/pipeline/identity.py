"""Which source a run read: names, sizes and digests of the files that decide the result."""

from __future__ import annotations

from typing import Any

from bcquant.io.digest import sha256_file
from bcquant.models.source import ModelSource

SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".gguf")


def identity(source: ModelSource) -> dict[str, Any]:
    """Name, kind, and SHA-256 of every file of a source by file name."""
    path = source.path
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    return {
        "name": path.name,
        "kind": source.reader.kind,
        "family": source.arch.key,
        "sha256": {file.name: sha256_file(file) for file in files},
    }
