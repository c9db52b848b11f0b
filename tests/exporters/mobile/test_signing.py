"""`bcquant export mobile --sign`: what is written, and the keys that are refused."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ed25519_reference as reference
import pytest

from bcquant.errors import ConfigError, ExportError
from bcquant.exporters.mobile.options import add_arguments, options_of
from bcquant.exporters.mobile.signing import read_key
from bcquant.io.package import open_package
from bcquant.io.package_signature import signature_path, signed_message
from bcquant.spec.export_plan import ExportPlan

Export = Callable[..., ExportPlan]
Make = Callable[..., Path]
SEED = bytes(range(32))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The bare seed as a file; without the library there is nothing to test."""
    pytest.importorskip("cryptography")
    path = tmp_path / "seed"
    path.write_bytes(SEED)
    return path


def test_a_signed_package_is_the_unsigned_one_and_a_file_beside_it(
    tmp_path: Path, key: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m")
    export(source, tmp_path / "plain.bcq")
    plan = export(source, tmp_path / "m.bcq", sign=key)
    data = (tmp_path / "m.bcq").read_bytes()
    assert data == (tmp_path / "plain.bcq").read_bytes()
    assert plan.files == (("model.bcq", len(data)), ("model.bcq.sig", 112))
    with open_package(tmp_path / "m.bcq") as package:
        signature = package.signature()
    assert signature is not None and signature.public_key == reference.public_key(SEED)
    assert signature.value == reference.sign(SEED, signed_message(data[64:96]))
    assert not list(tmp_path.glob("*.partial")) and not (tmp_path / "plain.bcq.sig").exists()


def test_shards_have_one_signature_beside_the_first(
    tmp_path: Path, key: Path, export: Export, make_float: Make
) -> None:
    large = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 16}
    plan = export(make_float(tmp_path / "m", **large), tmp_path / "s.bcq", split_mb=1, sign=key)
    first = tmp_path / plan.files[0][0].replace("model", "s")
    assert plan.files[-1][0] == plan.files[0][0] + ".sig"
    assert [path.name for path in tmp_path.glob("*.sig")] == [first.name + ".sig"]
    with open_package(first) as package:
        signature = package.signature()
        assert signature is not None
        message = signed_message(bytes.fromhex(package.sha256))
    assert signature.value == reference.sign(SEED, message)


def test_a_signature_that_is_there_is_not_overwritten(
    tmp_path: Path, key: Path, export: Export, make_float: Make
) -> None:
    kept = signature_path(tmp_path / "m.bcq")
    kept.write_bytes(b"kept")
    with pytest.raises(ExportError, match=r"m\.bcq\.sig: exists already"):
        export(make_float(tmp_path / "m"), tmp_path / "m.bcq", sign=key)
    assert kept.read_bytes() == b"kept" and not (tmp_path / "m.bcq").exists()


def test_keys_of_openssl_are_read(tmp_path: Path, key: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def made(*words: str) -> Path:
        path = tmp_path / "made.pem"
        command = ["openssl", "genpkey", *words, "-out", str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return path

    signing = read_key(made("-algorithm", "ed25519"))
    found = signing.sign(b"d" * 32)
    assert found.public_key == signing.public_key and len(found.value) == 64
    assert "private" not in repr(signing).replace("_private", "").lower()
    with pytest.raises(ConfigError, match="needs a password; take it off"):
        read_key(made("-algorithm", "ed25519", "-aes256", "-pass", "pass:x"))
    with pytest.raises(ConfigError, match="a private key of another kind"):
        read_key(made("-algorithm", "x25519"))


def test_what_is_no_key_is_refused(tmp_path: Path, key: Path) -> None:
    for data in (b"", SEED[:31], SEED + b"\n", b"-----BEGIN PRIVATE KEY-----\nMC4C\n"):
        key.write_bytes(data)
        with pytest.raises(ConfigError, match="not a private key as PEM; an Ed25519 key is needed"):
            read_key(key)
    key.write_bytes(bytes(20_000))
    with pytest.raises(ConfigError, match="more than 16384 bytes"):
        read_key(key)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_key(path)


def test_without_the_library_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ConfigError, match=r'pip install "bcquant\[sign\]"'):
        read_key(tmp_path / "key.pem")


def test_the_flag_is_a_path() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert options_of(parser.parse_args(["--sign", "k.pem"])).sign == Path("k.pem")
    assert options_of(parser.parse_args([])).sign is None
