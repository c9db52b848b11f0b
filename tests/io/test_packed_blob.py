"""Headers of blobs beside those that the packers write."""

from __future__ import annotations

import numpy as np
import pytest

from bcquant.errors import ShapeError
from bcquant.io.packed_blob import BlobShape, read_blob_header
from bcquant.kernels import native

CASES = [
    (n, k, bits, g, has_zeros)
    for n, k in ((1, 8), (16, 32), (17, 96), (48, 128), (33, 100))
    for bits in (2, 3, 4, 8)
    for g in (32, 64, k)
    for has_zeros in (False, True)
    if g <= k
]


@pytest.mark.parametrize(("n", "k", "bits", "group_size", "has_zeros"), CASES)
def test_the_header_is_that_of_the_packer(
    n: int, k: int, bits: int, group_size: int, has_zeros: bool
) -> None:
    groups = -(-k // group_size)
    zeros = np.zeros((n, groups), np.uint8) if has_zeros else None
    packed = native.pack(
        np.zeros((n, k), np.uint8), np.ones((n, groups), np.float16), zeros, bits, group_size
    )
    shape = BlobShape(n, k, bits, group_size, has_zeros)
    assert (shape.header(), shape.num_bytes) == (packed.tobytes()[:64], packed.nbytes)
    assert read_blob_header(shape.header(), shape.num_bytes) == shape


@pytest.mark.parametrize(("n", "k"), [(1, 8), (17, 96)])
def test_the_header_of_float16_values(n: int, k: int) -> None:
    packed = native.pack_f16(np.zeros((n, k), np.float16))
    shape = BlobShape(n, k, 16, k)
    assert (shape.header(), shape.num_bytes) == (packed.tobytes()[:64], packed.nbytes)


@pytest.mark.parametrize(
    ("n", "k", "bits", "group_size", "has_zeros"),
    [
        (0, 32, 4, 32, False), (2**28 + 1, 32, 4, 32, False), (16, 0, 4, 0, False),
        (16, 64, 5, 32, False), (16, 64, 4, 33, False), (16, 64, 4, 96, False),
        (16, 64, 4, 0, False), (16, 64, 16, 32, False), (16, 64, 16, 64, True),
    ],
)  # fmt: skip
def test_a_blob_that_cannot_be_is_refused(
    n: int, k: int, bits: int, group_size: int, has_zeros: bool
) -> None:
    with pytest.raises(ShapeError):
        BlobShape(n, k, bits, group_size, has_zeros)


def test_a_flipped_bit_is_refused_or_another_blob_of_this_size() -> None:
    shape = BlobShape(17, 96, 4, 32, True)
    header, others = shape.header(), 0
    for bit in range(8 * 64):
        data = bytearray(header)
        data[bit // 8] ^= 1 << bit % 8
        try:
            found = read_blob_header(bytes(data), shape.num_bytes)
        except ShapeError:
            continue
        others += 1
        assert found != shape and found.num_bytes == shape.num_bytes
    assert others == 3  # 17 rows become 19, 21 or 25: the same number of panels
