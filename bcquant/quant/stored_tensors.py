"""What every reader of one quantized Linear asks of its stored tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError
from bcquant.quant.tensors import F16Array

AnyArray = npt.NDArray[Any]
Tensors = Mapping[str, AnyArray]


def need(tensors: Tensors, suffix: str) -> AnyArray:
    """The tensor of a suffix. CheckpointError: the module has none of it."""
    if suffix not in tensors:
        raise CheckpointError(
            f"{suffix} is missing beside {', '.join(sorted(tensors)) or 'nothing'}; the checkpoint "
            "is incomplete or of another format"
        )
    return tensors[suffix]


def to_f16(scales: AnyArray, name: str) -> F16Array:
    """Float16 copy of stored scales (uint16 = bfloat16 bits, as the reader returns them), exact.

    Raises:
        CheckpointError: they are no floats, not finite, or change in float16.
    """
    if scales.dtype == np.uint16:
        scales = (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not np.issubdtype(scales.dtype, np.floating):
        raise CheckpointError(f"{name} are {scales.dtype}; a float type is needed")
    if not bool(np.isfinite(scales).all()):
        raise CheckpointError(f"{name} hold a value that is not finite; download the file again")
    largest = float(np.abs(scales).max())
    if largest > float(np.finfo(np.float16).max):
        raise CheckpointError(
            f"{name} reach {largest:.4g}; float16, which bcquant uses, ends at 65504"
        )
    rounded = scales.astype(np.float16, order="C")
    if not np.array_equal(rounded.astype(scales.dtype), scales):
        worst = float(np.abs(rounded.astype(np.float64) - scales).max())
        raise CheckpointError(
            f"{name} are {scales.dtype} and change by up to {worst:.2g} in float16, which bcquant "
            "uses; quantize the float model again"
        )
    return rounded
