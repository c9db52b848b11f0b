"""The private key of `--sign`, and the signature that it makes of a package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.errors import ConfigError
from bcquant.io.package_signature import KEY_BYTES, Signature, signed_message

# (an extra, so it may be missing where types are checked)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAX_KEY_BYTES = 1 << 14  # a PEM file of one such key has 119
_NEEDED = "an Ed25519 key is needed, as `openssl genpkey -algorithm ed25519` writes it"


@dataclass(frozen=True)
class SigningKey:
    """A private key of Ed25519, which neither `repr` nor an error shows.

    Attributes:
        public_key: its public half, 32 bytes: what an app compares with.
    """

    public_key: bytes
    _private: Ed25519PrivateKey = field(repr=False)

    def sign(self, index_sha256: bytes) -> Signature:
        """Of a package by the digest of its index; the same key and digest give the same bytes."""
        value: bytes = self._private.sign(signed_message(index_sha256))
        return Signature(self.public_key, value)


def read_key(path: Path) -> SigningKey:
    """A private key in a file: PKCS#8 as PEM, or the bare seed of 32 bytes.

    Raises:
        ConfigError: it cannot be read, is none or of another kind, needs a password, or the
            cryptography package is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ConfigError(
            '--sign needs the cryptography package; pip install "bcquant[sign]"'
        ) from error
    data = _read(path)
    if len(data) == KEY_BYTES:
        private = Ed25519PrivateKey.from_private_bytes(data)
    else:
        try:
            loaded = load_pem_private_key(data, password=None)
        except TypeError:
            raise ConfigError(
                f"--sign {path}: the key needs a password; take it off with `openssl pkey -in "
                f"{path.name}`"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"--sign {path}: not a private key as PEM; {_NEEDED}") from None
        if not isinstance(loaded, Ed25519PrivateKey):
            raise ConfigError(f"--sign {path}: a private key of another kind; {_NEEDED}")
        private = loaded
    return SigningKey(private.public_key().public_bytes_raw(), private)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"--sign {path}: cannot be read: {error.strerror or error}; {_NEEDED}"
        ) from None
    if len(data) > _MAX_KEY_BYTES:
        raise ConfigError(f"--sign {path}: more than {_MAX_KEY_BYTES} bytes; {_NEEDED}")
    return data
