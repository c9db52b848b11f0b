from __future__ import annotations

import hashlib

import numpy as np
import pytest

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.digest import digest_arrays, sha256_bytes, sha256_file


def test_sha256_file_equals_hashlib(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_sha256_file_names_what_it_cannot_read(tmp_path):
    with pytest.raises(CheckpointError, match="absent: cannot be read"):
        sha256_file(tmp_path / "absent")


def test_digest_arrays_ignores_order_and_memory_layout():
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    b = np.int8([1, 2])
    want = digest_arrays({"a": a, "b": b})
    assert digest_arrays({"b": b, "a": np.asfortranarray(a)}) == want
    assert digest_arrays({"b": b, "a": a.astype(">f4")}) == want


def test_digest_arrays_is_stable_across_releases():
    # Manifests hold this value: the byte stream may not change.
    arrays = {"w": np.arange(6, dtype=np.int32).reshape(2, 3), "s": np.float16(1.5).reshape(())}
    state = hashlib.sha256()
    for texts, data in (
        (("s", "<f2", ""), b"\x00\x3e"),
        (("w", "<i4", "2,3"), arrays["w"].tobytes()),
    ):
        for text in texts:
            state.update(len(text).to_bytes(8, "little") + text.encode())
        state.update(data)
    assert digest_arrays(arrays) == state.hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.zeros(4, np.uint8)},
        {"a": np.zeros(4, np.int8)},
        {"a": np.zeros((2, 2), np.uint8)},
        {"a": np.array([0, 0, 0, 1], np.uint8)},
        {"a": np.zeros(4, np.uint8), "b": np.zeros(0, np.uint8)},
        {},
    ],
)
def test_digest_arrays_sees_name_dtype_shape_value_and_count(other):
    assert digest_arrays(other) != digest_arrays({"a": np.zeros(4, np.uint8)})


def test_digest_arrays_refuses_objects():
    with pytest.raises(ShapeError, match="plain numbers"):
        digest_arrays({"a": np.array([object()])})
