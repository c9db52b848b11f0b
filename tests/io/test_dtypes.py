from __future__ import annotations

import numpy as np
import pytest
import torch

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.dtypes import (
    RawTensor,
    bf16_to_f32,
    dtype_name,
    f32_to_bf16,
    shown,
    tensor_bytes,
    to_f32,
)


def torch_bf16(values: np.ndarray) -> np.ndarray:
    as_bf16 = torch.from_numpy(values).to(torch.bfloat16)
    return as_bf16.view(torch.int16).numpy().view(np.uint16)


def test_bf16_to_f32_equals_torch_for_every_code():
    bits = np.arange(1 << 16, dtype=np.uint16)
    want = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bf16_to_f32(bits).view(np.uint32), want.view(np.uint32))


def test_f32_to_bf16_equals_torch_on_random_bits_and_ties():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    numbers = values[~np.isnan(values)]
    np.testing.assert_array_equal(f32_to_bf16(numbers), torch_bf16(numbers))


def test_f32_to_bf16_keeps_every_nan_a_nan():
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(bf16_to_f32(f32_to_bf16(nans))).all()


def test_bf16_round_trip_keeps_scalars_and_shapes():
    for shape in ((), (1,), (2, 3, 4), (0, 5)):
        values = np.ones(shape, np.float32)
        back = bf16_to_f32(f32_to_bf16(values))
        assert back.shape == shape
        np.testing.assert_array_equal(back, values)


def test_f32_to_bf16_accepts_a_strided_view():
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(bf16_to_f32(f32_to_bf16(values)), values)


def test_bf16_conversions_refuse_other_dtypes():
    with pytest.raises(ShapeError, match="uint16 is needed"):
        bf16_to_f32(np.zeros(3, np.int16))
    with pytest.raises(ShapeError, match="float32 is needed"):
        f32_to_bf16(np.zeros(3, np.float64))


@pytest.mark.parametrize(
    ("name", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)]
)
def test_to_f32_of_8_bit_floats_equals_torch_for_every_code(name, dtype):
    codes = np.arange(256, dtype=np.uint8)
    want = torch.from_numpy(codes).view(dtype).float().numpy()
    np.testing.assert_array_equal(to_f32(codes, name, "w"), want)


def test_to_f32_refuses_integers():
    with pytest.raises(CheckpointError, match="'w' is I32; a float type"):
        to_f32(np.zeros(2, np.int32), "I32", "w")


def test_to_f32_of_a_large_float64_is_infinite():
    assert to_f32(np.array([1e300]), "F64", "w")[0] == np.inf


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2**62, 2), "too large"),
        ((0, 2**62, 8), "too large"),
        ((1,) * 33, "at most 32"),
        ((-1,), "negative"),
    ],
)
def test_tensor_bytes_refuses_shapes_that_numpy_cannot_hold(shape, message):
    with pytest.raises(ShapeError, match=message):
        tensor_bytes("F32", shape)


def test_tensor_bytes_of_scalar_and_empty():
    assert tensor_bytes("F32", ()) == 4
    assert tensor_bytes("F32", (0, 7)) == 0


def test_dtype_name_knows_both_byte_orders_and_refuses_objects():
    assert dtype_name(np.dtype(">f4")) == "F32"
    assert dtype_name(np.dtype(np.uint16)) == "U16"
    with pytest.raises(ShapeError, match="cannot be stored"):
        dtype_name(np.dtype(object))


def test_raw_tensor_refuses_a_wrong_number_of_bytes():
    with pytest.raises(ShapeError, match=r"6 bytes; BF16\[2, 2\] needs 8"):
        RawTensor("BF16", (2, 2), np.zeros(3, np.uint16))


def test_shown_cuts_long_names():
    assert len(shown("x" * 10_000_000)) < 130
