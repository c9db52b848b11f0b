"""A package's signature, the file beside it: docs/formats/bcq_package_v1.md, "Signature"."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

SIGNATURE_SUFFIX = ".sig"
KEY_BYTES = 32
_MAGIC = b"\x89BCS\r\n\x1a\n"
_VERSION = 1
_FILE = struct.Struct("<8sII32s64s")
SIGNATURE_FILE_BYTES = _FILE.size
_DOMAIN = b"bcq_package_v1 signature"


def signature_path(path: Path) -> Path:
    """Where the signature of the package lies whose first file is `path`."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def signed_message(index_sha256: bytes) -> bytes:
    """What is signed: 56 bytes for an index digest of 32."""
    return _DOMAIN + index_sha256


@dataclass(frozen=True)
class Signature:
    """What a signature's file says; whether it fits the package is the verifier's to compute.

    Attributes:
        public_key: of the one who signed, 32 bytes.
        value: 64 bytes of Ed25519 (RFC 8032) over `signed_message`.
    """

    public_key: bytes
    value: bytes

    def to_bytes(self) -> bytes:
        """The file, 112 bytes."""
        return _FILE.pack(_MAGIC, _VERSION, 0, self.public_key, self.value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Signature | str:
        """The signature, or in a clause why these bytes are none."""
        if data[: len(_MAGIC)] != _MAGIC:
            return "it does not begin as a signature does"
        if len(data) != _FILE.size:
            return f"it has {len(data)} bytes; a signature has {_FILE.size}"
        _, version, zero, public_key, value = _FILE.unpack(data)
        if version != _VERSION:
            return f"it has version {version} and this program reads {_VERSION}; update bcquant"
        if zero:
            return "it has a value where a zero belongs"
        return cls(public_key, value)
