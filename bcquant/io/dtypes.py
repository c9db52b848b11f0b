"""Element types of stored tensors, under the names that the safetensors format gives them."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, ShapeError

Array = npt.NDArray[Any]

# BF16 and the 8-bit floats have no numpy type: they are carried as their bits.
STORAGE: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "F8_E4M3": np.dtype("<u1"),
    "F8_E5M2": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
FLOATS = frozenset({"F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64"})
_BITS_ONLY = frozenset({"F8_E4M3", "F8_E5M2", "BF16"})
_FROM_NUMPY = {dtype: name for name, dtype in STORAGE.items() if name not in _BITS_ONLY}

# numpy 2 allows 64 axes, numpy 1 allows 32; no checkpoint has more than 5.
MAX_DIMS = 32
MAX_BYTES = 2**62

_REPR = reprlib.Repr()
_REPR.maxstring = 120


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, as its header describes it.

    Attributes:
        name: the name in the file.
        dtype: safetensors spelling ("F32", "BF16", "I32", ...), or "GGUF:Q4_1" and the like for
            the block types of a GGUF file.
        shape: numpy order, outermost first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RawTensor:
    """Bytes to be written as `dtype`, for types that numpy does not have.

    Attributes:
        dtype: a key of `STORAGE`.
        shape: numpy order.
        data: the bits, in an array of any dtype and shape with the right number of bytes
            (BF16: uint16).
    Raises:
        ShapeError: the dtype is unknown, or `data` holds a different number of bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Array

    def __post_init__(self) -> None:
        need = tensor_bytes(self.dtype, self.shape)
        if self.data.nbytes != need:
            raise ShapeError(
                f"raw tensor: the data has {self.data.nbytes} bytes; "
                f"{self.dtype}{list(self.shape)} needs {need}"
            )


def shown(value: object) -> str:
    """`repr` cut to a length that fits an error message: names come from files."""
    return _REPR.repr(value)


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a dense tensor.

    Raises:
        ShapeError: the dtype is not a key of `STORAGE`, or an axis is negative, or there are too
            many axes or bytes to address.
    """
    if dtype not in STORAGE:
        raise ShapeError(f"dtype {shown(dtype)} is unknown; known: {', '.join(STORAGE)}")
    if len(shape) > MAX_DIMS:
        raise ShapeError(f"{len(shape)} axes; at most {MAX_DIMS} can be held")
    if any(axis < 0 for axis in shape):
        raise ShapeError(f"shape {shown(list(shape))} has a negative axis")
    itemsize = STORAGE[dtype].itemsize
    # numpy refuses (0, 2**62, 8) too, so an empty axis does not excuse the others.
    extent = itemsize
    for axis in shape:
        extent *= max(axis, 1)
        if extent > MAX_BYTES:
            raise ShapeError(f"shape {shown(list(shape))} of {dtype} is too large to address")
    return itemsize * math.prod(shape)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy dtype; either byte order.

    Raises:
        ShapeError: there is none (BF16 has to be given as `RawTensor`).
    """
    name = _FROM_NUMPY.get(dtype.newbyteorder("<"))
    if name is None:
        known = ", ".join(_FROM_NUMPY.values())
        raise ShapeError(f"dtype {dtype} cannot be stored; known: {known}")
    return name


def bf16_to_f32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Exact float32 values of bfloat16 bits, same shape.

    Raises:
        ShapeError: the array is not uint16.
    """
    if bits.dtype != np.uint16:
        raise ShapeError(f"bfloat16 bits are {bits.dtype}; uint16 is needed")
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def f32_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """bfloat16 bits of float32 values, rounded to nearest, ties to even; NaN stays NaN.

    Raises:
        ShapeError: the array is not float32.
    """
    if values.dtype != np.float32:
        raise ShapeError(f"values are {values.dtype}; float32 is needed")
    flat = np.ascontiguousarray(values).reshape(-1)
    bits = flat.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + (odd + np.uint32(0x7FFF))) >> np.uint32(16)).astype(np.uint16)
    # The rounding carry would turn some NaNs into infinity: keep their top bits, made quiet.
    is_nan = np.isnan(flat)
    rounded[is_nan] = (bits[is_nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return rounded.reshape(values.shape)


def to_f32(stored: Array, dtype: str, name: str) -> npt.NDArray[np.float32]:
    """Float32 values of an array in stored form; float64 beyond the range becomes infinite.

    Raises:
        CheckpointError: `dtype` is not a float type.
    """
    if dtype == "BF16":
        return bf16_to_f32(stored)
    if dtype == "F8_E4M3":
        return _e4m3_table()[stored]
    if dtype == "F8_E5M2":
        # E5M2 is the upper byte of a float16.
        return (stored.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    if stored.dtype.kind != "f":
        raise CheckpointError(f"{shown(name)} is {dtype}; a float type is needed here")
    with np.errstate(over="ignore"):
        return stored.astype(np.float32, copy=False)


def _e4m3_table() -> npt.NDArray[np.float32]:
    """Values of the 256 codes of float8_e4m3fn: bias 7, no infinities, 0x7f and 0xff are NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    value = np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)
    value = np.where((code & 127) == 127, np.nan, value)
    return np.where(code > 127, -value, value).astype(np.float32)
