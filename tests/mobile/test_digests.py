"""SHA-256 and SHA-512 in C++: against hashlib and FIPS 180-4, one message and many."""

from __future__ import annotations

import ctypes
import hashlib
import random

import pytest
from mobile_api import Runtime

DRAINS = ("sha256_drain", "sha256_drain_plain")
# FIPS 180-4's examples: message, SHA-256, and the start of SHA-512.
NIST = {
    b"": ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "cf83e1357eefb8bd"),
    b"abc": (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "ddaf35a193617aba",
    ),
    b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq": (
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1", "204a8fc6dda82f0a",
    ),
    b"a" * 1_000_000: (
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "e718483d0ce76964",
    ),
}  # fmt: skip


class Digest(ctypes.Structure):
    """bcq::Digest."""

    _fields_ = [
        ("data", ctypes.c_char_p), ("bytes", ctypes.c_size_t), ("value", ctypes.c_uint8 * 32),
    ]  # fmt: skip


class Queue(ctypes.Structure):
    """bcq::DigestQueue."""

    _fields_ = [
        ("digests", ctypes.POINTER(Digest)), ("num", ctypes.c_size_t), ("next", ctypes.c_size_t),
    ]  # fmt: skip


def drained(runtime: Runtime, name: str, messages: list[bytes]) -> list[bytes]:
    """Digests of messages that share a queue."""
    digests = (Digest * len(messages))(*(Digest(data, len(data)) for data in messages))
    queue = Queue(digests, len(messages), 0)
    runtime.lib[f"_ZN3bcq{len(name)}{name}EPNS_11DigestQueueE"](ctypes.byref(queue))
    return [bytes(digest.value) for digest in digests]


def sha512(runtime: Runtime, *parts: bytes) -> bytes:
    """Of the parts, each added by itself."""
    state, found = ctypes.create_string_buffer(512), ctypes.create_string_buffer(64)
    runtime.lib._ZN3bcq6Sha512C1Ev(state)
    for part in parts:
        runtime.lib._ZN3bcq6Sha5123addEPKvm(state, part, ctypes.c_size_t(len(part)))
    runtime.lib._ZN3bcq6Sha5126finishEPh(state, found)
    return found.raw


@pytest.mark.parametrize("name", ["sha256", "sha256_plain"])
def test_sha256_is_hashlibs(runtime: Runtime, name: str) -> None:
    digest_of = runtime.lib[f"_ZN3bcq{len(name)}{name}EPKvmPh"]
    data = bytes(range(256)) * 3
    for size in (*range(200), 511, 512, 768):
        found = ctypes.create_string_buffer(32)
        digest_of(data, ctypes.c_size_t(size), found)
        assert found.raw == hashlib.sha256(data[:size]).digest(), size


@pytest.mark.parametrize("name", DRAINS)
def test_the_examples_of_the_standard(runtime: Runtime, name: str) -> None:
    assert [found.hex() for found in drained(runtime, name, [*NIST])] == [
        a for a, _ in NIST.values()
    ]
    for message, (_, start) in NIST.items():
        assert sha512(runtime, message).hex().startswith(start)


@pytest.mark.parametrize("name", DRAINS)
def test_messages_of_any_two_lengths_share_the_lanes(runtime: Runtime, name: str) -> None:
    data = random.Random(0).randbytes(2000)
    sizes = (0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 500, 2000)
    pairs = [[data[:a], data[-b:] if b else b""] for a in sizes for b in sizes]
    for messages in ([], [data], *pairs, [data[i:] for i in range(0, 2000, 37)]):
        found = drained(runtime, name, messages)
        assert found == [hashlib.sha256(message).digest() for message in messages]


def test_sha512_is_hashlibs_however_it_is_cut(runtime: Runtime) -> None:
    data = random.Random(1).randbytes(700)
    for size in (*range(260), 511, 512, 700):
        assert sha512(runtime, data[:size]) == hashlib.sha512(data[:size]).digest(), size
    for cut in range(0, 300, 7):
        parts = data[:cut], b"", data[cut : 2 * cut], data[2 * cut :]
        assert sha512(runtime, *parts) == hashlib.sha512(data).digest(), cut
