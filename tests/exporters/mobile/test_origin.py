"""What a package says of its source, and the certificates that it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_gguf_checkpoint

from bcquant.errors import CheckpointError, ConfigError
from bcquant.exporters.mobile.origin import origin, read_certificate
from bcquant.io.package import open_package
from bcquant.io.package_index import CERTIFICATE
from bcquant.models.source import open_model

Make = Callable[..., Path]


def certificate(folder: Path, **changes: Any) -> Path:
    """As `bcquant verify` writes it, of a source folder, in the fields that matter here."""
    files = [
        {"name": path.name, "bytes": path.stat().st_size,
         "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [folder])
    ]  # fmt: skip
    value = {
        "schema": "bcquant-certificate-1", "verdict": "pass",
        "source": {"path": str(folder), "files": files}, **changes,
    }  # fmt: skip
    out = folder.parent / "certificate.json"
    out.write_text(json.dumps({key: v for key, v in value.items() if v is not None}))
    return out


def test_a_certificate_lies_in_the_package_byte_for_byte(
    tmp_path: Path, export: Callable[..., Any], make_float: Make
) -> None:
    source = make_float(tmp_path / "m")
    path = certificate(source)
    export(source, tmp_path / "m.bcq", certificate=path)
    export(source, tmp_path / "plain.bcq")
    with open_package(tmp_path / "m.bcq") as package, open_package(tmp_path / "plain.bcq") as plain:
        package.verify()
        section = package.find(CERTIFICATE)
        assert section is not None and package.data(section) == path.read_bytes()
        assert plain.find(CERTIFICATE) is None
        # Nothing else changes: what was verified is what is sealed.
        others = [s for s in package.sections if s is not section]
        assert [s.sha256 for s in others] == [s.sha256 for s in plain.sections]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "other"}, "it is none that `bcquant verify` wrote"),
        ({"schema": None}, "it is none that `bcquant verify` wrote"),
        ({"verdict": "fail"}, "its verdict is 'fail'; only what passed"),
        ({"verdict": None}, "its verdict is None"),
        ({"source": None}, "it is of another source: model.safetensors differs"),
        ({"source": {"files": 7}}, "it is of another source: model.safetensors differs"),
        ({"source": {"files": [7, {"name": []}]}}, "model.safetensors differs"),
    ],
)
def test_other_certificates_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, make_float: Make
) -> None:
    folder = make_float(tmp_path / "m")
    with open_model(folder) as source, pytest.raises(ConfigError) as caught:
        read_certificate(certificate(folder, **changes), origin(source))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_certificate_of_other_weights_or_another_config_is_refused(
    name: str, tmp_path: Path, make_float: Make
) -> None:
    folder = make_float(tmp_path / "m")
    path = certificate(folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(
        data[:-1] + bytes([data[-1] ^ 1]) if name[0] == "m" else data + b" "
    )
    with open_model(folder) as source, pytest.raises(ConfigError, match=f"{name} differs"):
        read_certificate(path, origin(source))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff{}"])
def test_a_file_that_is_no_json_object_is_refused(
    content: bytes, tmp_path: Path, make_float: Make
) -> None:
    (tmp_path / "certificate.json").write_bytes(content)
    with open_model(make_float(tmp_path / "m")) as source, pytest.raises(CheckpointError):
        read_certificate(tmp_path / "certificate.json", origin(source))


def test_single_files_are_known_by_their_own_digest(tmp_path: Path, make_float: Make) -> None:
    gguf = make_gguf_checkpoint("llama", tmp_path / "a.gguf")
    with open_model(gguf) as source:
        found = origin(source)
        assert [file["name"] for file in found["source"]["files"]] == ["a.gguf"]
        assert read_certificate(certificate(gguf), found)
    weights = make_float(tmp_path / "m") / "model.safetensors"
    with open_model(weights) as source:
        found = origin(source)
        assert len(found["source"]["files"]) == 2
        assert read_certificate(certificate(weights), found)
