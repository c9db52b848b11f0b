"""The certificate file: digests of everything but itself, and where it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bcquant.errors import ExportError
from bcquant.eval.verify.certificate import (
    Certificate,
    Check,
    certificate_path,
    cpu_name,
    describe_files,
    package_versions,
    write_certificate,
)
from bcquant.eval.verify.thresholds import KINDS


def make(*checks: Check, diverges: str | None = None) -> Certificate:
    row = KINDS["float32"]
    return Certificate({}, {}, "core", row, row, {"seq_len": 512}, {}, checks, diverges, 1.234)


GOOD = Check("tokens", True, {"texts": 3}, {"different": 0})
BAD = Check("weights", False, {"error": 0.5}, {"error": 0.0}, "a.weight differs")


def test_verdict_is_that_of_every_check() -> None:
    assert make(GOOD).as_dict()["verdict"] == "pass"
    failed = make(GOOD, BAD, diverges="a.weight").as_dict()
    assert (failed["verdict"], failed["diverges"]) == ("fail", "a.weight")
    assert failed["checks"][1]["problem"] == "a.weight differs"
    assert (failed["schema"], failed["seconds"]) == ("bcquant-certificate-1", 1.23)


def test_folder_certificate_is_inside_and_not_in_its_own_digests(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "sub" / "part").write_bytes(b"12")
    before = describe_files(tmp_path)
    path = write_certificate(tmp_path, make(GOOD))
    assert path == tmp_path / "certificate.json"
    assert json.loads(path.read_text())["verdict"] == "pass"
    assert describe_files(tmp_path) == before
    digest = hashlib.sha256(b"graph").hexdigest()
    assert before["files"] == [
        {"name": "model.onnx", "bytes": 5, "sha256": digest},
        {"name": "sub/part", "bytes": 2, "sha256": hashlib.sha256(b"12").hexdigest()},
    ]


def test_file_certificate_is_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert certificate_path(file) == tmp_path / "model.gguf.certificate.json"
    assert [entry["name"] for entry in describe_files(file)["files"]] == ["model.gguf"]


def test_a_new_certificate_replaces_the_old_one(tmp_path: Path) -> None:
    write_certificate(tmp_path, make(BAD))
    path = write_certificate(tmp_path, make(GOOD))
    assert json.loads(path.read_text())["verdict"] == "pass"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").mkdir()  # nobody can rename a file over a folder
    with pytest.raises(ExportError, match="--no-certificate verifies without writing one"):
        write_certificate(tmp_path, make(GOOD))


def test_versions_and_cpu_are_said() -> None:
    found = package_versions("tokenizers", "")
    assert {"python", "bcquant", "numpy", "torch", "tokenizers"} == set(found)
    assert cpu_name()
