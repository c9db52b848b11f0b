"""The file of a signature as Python reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_package import tiny_package

from bcquant.errors import CheckpointError
from bcquant.io.package import open_package
from bcquant.io.package_signature import (
    SIGNATURE_FILE_BYTES,
    Signature,
    signature_path,
    signed_message,
)

SIGNATURE = Signature(bytes(range(32)), bytes(range(64, 128)))


def test_the_file_is_that_of_the_formats_page() -> None:
    data = SIGNATURE.to_bytes()
    assert len(data) == SIGNATURE_FILE_BYTES == 112
    assert data[:16] == bytes.fromhex("89424353 0d0a1a0a 01000000 00000000")
    assert (data[16:48], data[48:]) == (SIGNATURE.public_key, SIGNATURE.value)
    assert Signature.from_bytes(data) == SIGNATURE
    assert signed_message(b"d" * 32) == b"bcq_package_v1 signature" + b"d" * 32


def test_a_package_has_the_signature_that_lies_beside_it(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    with open_package(path) as package:
        assert package.signature() is None
        signature_path(path).write_bytes(SIGNATURE.to_bytes())
        assert package.signature() == SIGNATURE
    assert signature_path(path).name == "tiny.bcq.sig"


@pytest.mark.parametrize(
    ("at", "value", "about"),
    [
        (0, b"B", "does not begin as"),
        (8, b"\x02", "has version 2"),
        (12, b"\x01", "where a zero belongs"),
        (112, b"\0", "has 113 bytes; a signature has 112"),
    ],
)
def test_a_damaged_one_is_refused(tmp_path: Path, at: int, value: bytes, about: str) -> None:
    path = tiny_package().write(tmp_path)
    data = bytearray(SIGNATURE.to_bytes())
    data[at : at + 1] = value
    signature_path(path).write_bytes(data)
    with open_package(path) as package, pytest.raises(CheckpointError, match=about):
        package.signature()


def test_every_cut_one_is_refused(tmp_path: Path) -> None:
    data = SIGNATURE.to_bytes()
    for size in range(len(data)):
        assert isinstance(Signature.from_bytes(data[:size]), str)
    path = tiny_package().write(tmp_path)
    signature_path(path).touch()
    with open_package(path) as package, pytest.raises(CheckpointError, match="is empty"):
        package.signature()
