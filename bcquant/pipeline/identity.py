"""Which source a run read: names, sizes and digests of the files that decide the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcquant.io.digest import sha256_file
from bcquant.models.source import ModelSource

WEIGHTS = (".safetensors", ".bin")
BESIDE = (".json", ".model", ".jinja", ".txt")  # configs and tokenizers, which are copied


def identity(source: ModelSource) -> dict[str, Any]:
    """Name, kind, and SHA-256 of every file of a source by file name."""
    path = source.path
    if path.is_dir():
        files = _files(path, WEIGHTS + BESIDE)
    else:  # a GGUF says everything itself
        files = [path] + ([] if source.reader.kind == "gguf" else _files(path.parent, BESIDE))
    return {
        "name": path.name,
        "kind": source.reader.kind,
        "family": source.arch.key,
        "sha256": {file.name: sha256_file(file) for file in files},
    }


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in suffixes and p.is_file())
