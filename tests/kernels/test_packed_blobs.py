"""Packing in C++ against numpy, byte by byte, and blobs that lie."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import activations, pack
from vectors.make_vectors import random_weight

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels import native
from bcquant.kernels import reference as ref


@st.composite
def weights(draw: st.DrawFn) -> ref.Weight:
    n, k = draw(st.integers(1, 70)), draw(st.integers(1, 400))
    bits = draw(st.sampled_from((2, 3, 4, 8, 16)))
    group_size = draw(st.sampled_from([k, *range(32, k, 32)])) if bits != 16 else k
    return random_weight(n, k, bits, group_size, draw(st.booleans()), draw(st.integers(0, 9)))


@settings(max_examples=200)
@given(weights())
def test_packed_bytes_equal_the_reference(w: ref.Weight) -> None:
    packed = pack(w)
    assert packed.tobytes() == ref.pack_weight(w)
    assert packed.nbytes == len(packed.tobytes())


@given(weights())
def test_unpack_gives_the_weight_back(w: ref.Weight) -> None:
    packed = native.open_packed(ref.pack_weight(w))
    assert (packed.out_features, packed.in_features) == w.codes_NK.shape
    assert (packed.bits, packed.group_size) == (w.bits, w.group_size)
    assert packed.has_zeros == (w.zeros_NG is not None)
    if w.bits == 16:
        with pytest.raises(KernelError, match="unpack"):
            packed.unpack()
        return
    codes, scales, zeros = packed.unpack()
    np.testing.assert_array_equal(codes, w.codes_NK)
    np.testing.assert_array_equal(scales, w.scales_NG)
    wanted = np.full_like(zeros, 1 << (w.bits - 1)) if w.zeros_NG is None else w.zeros_NG
    np.testing.assert_array_equal(zeros, wanted)


def small_blob(bits: int = 3) -> bytes:
    return ref.pack_weight(random_weight(17, 70, bits, 70 if bits == 16 else 32, bits != 3, 5))


def try_blob(blob: bytes) -> bool:
    """Whether it opens; if so it must be usable in every way, from a buffer that ends with it."""
    data = np.frombuffer(blob, np.uint8).copy()
    try:
        packed = native.open_packed(data)
    except KernelError:
        return False
    assert packed.nbytes == len(blob)
    context = native.context()
    y = np.empty((2, packed.out_features), np.float32)
    x = activations(2, packed.in_features)
    native.linear(context, [packed], x, [y])
    native.linear(context, [packed], x, [y], "int8")
    last = np.array([packed.out_features - 1], np.int32)
    native.embed(context, packed, last, np.empty((1, packed.in_features), np.float32))
    if packed.bits != 16:
        packed.unpack()
    return True


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_every_prefix_is_refused(bits: int) -> None:
    blob = small_blob(bits)
    assert try_blob(blob)
    assert not any(try_blob(blob[:length]) for length in range(len(blob)))


def test_a_longer_blob_is_refused() -> None:
    assert not try_blob(small_blob() + b"\0")
    assert not try_blob(small_blob() + bytes(64))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_every_flipped_bit_of_the_header_is_harmless(bits: int) -> None:
    blob, opened = small_blob(bits), set()
    for bit in range(64 * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        if try_blob(bytes(flipped)):
            opened.add(bit // 8)
    # Only N (byte 8), K (12) and, for one scale a row, nothing else can lie within the same size.
    assert opened <= {8, 12}


FIELDS = {
    "version": ("<H", 4), "bits": ("B", 6), "flags": ("B", 7), "n": ("<I", 8), "k": ("<I", 12),
    "group_size": ("<I", 16), "groups": ("<I", 20), "codes": ("<Q", 24), "scales": ("<Q", 32),
    "zeros": ("<Q", 40), "total": ("<Q", 48), "reserved": ("<Q", 56),
}  # fmt: skip


def with_fields(blob: bytes, **fields: int) -> bytes:
    out = bytearray(blob)
    for name, value in fields.items():
        kind, at = FIELDS[name]
        struct.pack_into(kind, out, at, value)
    return bytes(out)


@pytest.mark.parametrize("name", FIELDS)
def test_huge_numbers_are_refused(name: str) -> None:
    kind = FIELDS[name][0]
    most = (1 << 8 * struct.calcsize(kind)) - 1
    for value in (most, most // 2 + 1, most // 2, most - 63):
        assert not try_blob(with_fields(small_blob(), **{name: value}))


def test_huge_sides_are_refused_whatever_else_is_said() -> None:
    huge = (1 << 28, (1 << 28) + 1, (1 << 31) - 1, (1 << 32) - 1)
    for n in huge:
        for k in (1, 70, *huge):
            assert not try_blob(with_fields(small_blob(), n=n, k=k, group_size=k, groups=1))


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 0}, {"version": 2}, {"bits": 0}, {"bits": 1}, {"bits": 5}, {"bits": 4},
        {"bits": 16}, {"flags": 0}, {"flags": 3}, {"n": 0}, {"n": 33}, {"k": 0}, {"k": 97},
        {"group_size": 0}, {"group_size": 33}, {"group_size": 64}, {"group_size": 71},
        {"groups": 0}, {"groups": 2}, {"codes": 0}, {"codes": 128}, {"scales": 64},
        {"zeros": 0}, {"zeros": 64}, {"total": 64}, {"reserved": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(fields: dict[str, int]) -> None:
    assert not try_blob(with_fields(small_blob(), **fields))


@given(st.sampled_from((2, 3, 4, 8, 16)), st.randoms(use_true_random=False))
def test_any_content_of_a_good_blob_computes(bits: int, random: object) -> None:
    blob = small_blob(bits)
    noise = np.random.default_rng(random.getrandbits(32)).bytes(len(blob) - 64)  # type: ignore[attr-defined]
    assert try_blob(blob[:64] + noise)


@given(st.binary(max_size=300))
def test_bytes_of_anything_are_refused(blob: bytes) -> None:
    assert not try_blob(blob)
    assert not try_blob(b"BCQW" + blob)


def test_an_odd_address_is_refused() -> None:
    blob = small_blob()
    room = np.empty(len(blob) + 1, np.uint8)
    start = 1 if room.ctypes.data % 2 == 0 else 0
    room[start : start + len(blob)] = np.frombuffer(blob, np.uint8)
    with pytest.raises(ShapeError, match="odd address"):
        native.open_packed(room[start : start + len(blob)])


def test_an_opened_blob_keeps_its_buffer_alive() -> None:
    data = bytearray(small_blob())
    packed = native.open_packed(data)
    with pytest.raises(BufferError):
        data.append(0)  # Python refuses to move memory that is lent out
    assert packed.tobytes() == small_blob()


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(ShapeError, match="contiguous"):
        native.open_packed(np.zeros(512, np.uint8)[::2])


@pytest.mark.parametrize(("bits", "group_size"), [(5, 64), (1, 64), (0, 64), (4, 8), (4, 48)])
def test_pack_refuses_what_no_kernel_computes(bits: int, group_size: int) -> None:
    w = random_weight(3, 64, 4, 64, True, 0)
    scales = np.ones((3, -(-64 // group_size)), np.float16)
    with pytest.raises(KernelError, match=f"{bits} bits and group_size {group_size}"):
        native.pack(w.codes_NK, scales, None, bits, group_size)


@pytest.mark.parametrize("part", ["codes", "zeros"])
def test_pack_refuses_a_number_that_needs_more_bits(part: str) -> None:
    w = random_weight(3, 64, 3, 32, False, 0)
    assert w.zeros_NG is not None
    (w.codes_NK if part == "codes" else w.zeros_NG)[2, 1] = 8
    with pytest.raises(KernelError, match="3 bits"):
        pack(w)


def test_pack_refuses_arrays_that_do_not_fit() -> None:
    w = random_weight(3, 64, 4, 32, False, 0)
    codes, scales, zeros = w.codes_NK, w.scales_NG, w.zeros_NG
    assert zeros is not None
    for wrong in (
        (codes[0], scales, zeros), (codes.astype(np.int8), scales, zeros),
        (codes[:, ::2], scales, zeros), (codes, scales.astype(np.float32), zeros),
        (codes, scales[:2], zeros), (codes, scales, zeros[:, :1]),
        (codes, scales, zeros.astype(np.int32)), (codes[:, :63], scales[:, ::2], zeros),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            native.pack(*wrong, bits=4, group_size=32)
