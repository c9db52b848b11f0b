"""Where a package comes from, and the certificate that vouches for its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bcquant
from bcquant.errors import ConfigError
from bcquant.io.digest import sha256_file
from bcquant.io.folder import find_weights
from bcquant.io.json_file import MAX_JSON_BYTES, parse_json_object
from bcquant.io.mapped_file import MappedFile
from bcquant.models.source import ModelSource

_SCHEMA = "bcquant-certificate-1"
_CONFIG = "config.json"


def origin(source: ModelSource) -> dict[str, Any]:
    """Exporter, version, and the source by its name and its files' SHA-256.

    Paths are left out, so the same checkpoint gives the same bytes anywhere.

    Raises:
        CheckpointError: a file cannot be read any more.
    """
    return {
        "exporter": "mobile",
        "bcquant": bcquant.__version__,
        "source": {
            "name": source.path.resolve().name,
            "kind": source.reader.kind,
            "family": source.config.family,
            "files": [{"name": file.name, "sha256": sha256_file(file)} for file in _files(source)],
        },
    }


def read_certificate(path: Path, found: dict[str, Any]) -> bytes:
    """The bytes of a certificate that vouches for the source in `found`, an `origin`.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object.
        ConfigError: it is no certificate, did not pass, or is of other files.
    """
    with MappedFile(path) as opened:
        data = opened.bytes_at(0, min(opened.size, MAX_JSON_BYTES + 1))
    if len(data) > MAX_JSON_BYTES:
        raise ConfigError(f"--certificate {path}: it has more than {MAX_JSON_BYTES} bytes")
    certificate = parse_json_object(data, str(path))
    if certificate.get("schema") != _SCHEMA:
        raise ConfigError(f"--certificate {path}: it is none that `bcquant verify` wrote")
    if certificate.get("verdict") != "pass":
        raise ConfigError(
            f"--certificate {path}: its verdict is {certificate.get('verdict')!r}; only what "
            "passed goes into a package"
        )
    known = _digests(certificate.get("source"))
    for file in found["source"]["files"]:
        if file["name"] == _CONFIG and _CONFIG not in known:
            continue  # beside a weight file that was verified by its own path
        if known.get(file["name"]) != file["sha256"]:
            raise ConfigError(
                f"--certificate {path}: it is of another source: {file['name']} differs or is not "
                "in it; verify this one"
            )
    return data


def _digests(side: Any) -> dict[str, Any]:
    files = side.get("files") if isinstance(side, dict) else None
    rows = [row for row in files if isinstance(row, dict)] if isinstance(files, list) else []
    return {str(row.get("name")): row.get("sha256") for row in rows}


def _files(source: ModelSource) -> list[Path]:
    """Config and weights."""
    if source.reader.kind == "gguf":
        folder = source.path
        return find_weights(folder).files if folder.is_dir() else [folder]
    if source.path.is_dir():
        return [source.path / _CONFIG, *find_weights(source.path).files]
    return [source.path.parent / _CONFIG, source.path]
