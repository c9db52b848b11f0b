"""What every checkpoint reader offers, whatever the files look like."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.closing import Closing
from bcquant.io.dtypes import FLOATS, Array, TensorInfo, shown, to_f32
from bcquant.registry import nearest

Kind = Literal["safetensors", "torch_bin", "gguf"]
Rows = tuple[int, int]

# Float32 bytes converted at a time: the stored form of a large tensor is never whole in memory.
_CONVERT_BYTES = 32 << 20


class CheckpointReader(Closing, ABC):
    """Named tensors of one checkpoint; the headers are validated, the data is read on demand.

    Attributes:
        path: the folder or the file that was opened.
        kind: "safetensors", "torch_bin" or "gguf".
        config: the parsed config.json beside the weights, {} when there is none.
        metadata: the key/values of a GGUF file as Python scalars, strings and lists, else {}.
        tensors: name -> TensorInfo in file order.
    """

    kind: ClassVar[Kind]
    path: Path
    config: dict[str, Any]
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @abstractmethod
    def read(self, name: str, rows: Rows | None = None) -> Array:
        """A fresh array in stored dtype; BF16 as uint16 bits, GGUF block types as float32.

        Args:
            name: a key of `tensors`.
            rows: first and one-past-last index of the outermost axis; None = all.
        Raises:
            CheckpointError: no such tensor, or its bytes cannot be read.
            ShapeError: `rows` is not inside the outermost axis.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the files; closing twice is fine."""

    def read_f32(self, name: str, rows: Rows | None = None) -> npt.NDArray[np.float32]:
        """A fresh float32 array of any float tensor; arguments and errors as for `read`.

        Raises:
            CheckpointError: also when the tensor is not of a float type.
        """
        info = find(self.tensors, name, self.path)
        is_block = info.dtype.startswith("GGUF:")
        if not is_block and info.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.path}: {shown(name)} is {info.dtype}; a float type is needed here"
            )
        if is_block or info.dtype == "F32" or not info.shape:
            return to_f32(self.read(name, rows), "F32" if is_block else info.dtype, name)
        start, stop = row_range(info, rows)
        row_bytes = 4 * math.prod(info.shape[1:])
        step = max(1, _CONVERT_BYTES // max(row_bytes, 1))
        out = np.empty((stop - start, *info.shape[1:]), np.float32)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = to_f32(
                self.read(name, (first, last)), info.dtype, name
            )
        return out


def find(tensors: Mapping[str, TensorInfo], name: str, path: Path) -> TensorInfo:
    """The entry of `name`.

    Raises:
        CheckpointError: there is none; the message names the nearest one.
    """
    info = tensors.get(name)
    if info is None:
        known = list(tensors)
        advice = nearest(name, known) if len(known) < 20_000 else f"it has {len(known)} others"
        if not advice.startswith("did you"):
            advice = f"it has {len(known)} others"
        raise CheckpointError(f"{path}: there is no tensor {shown(name)}; {advice}")
    return info


def row_range(info: TensorInfo, rows: Rows | None) -> Rows:
    """`rows` checked against the outermost axis of `info`; None means all of it.

    Raises:
        ShapeError: the range is reversed or outside, or the tensor is a scalar.
    """
    if not info.shape:
        if rows is None:
            return (0, 1)
        raise ShapeError(f"{shown(info.name)} is a scalar; it has no rows {rows}")
    if rows is None:
        return (0, info.shape[0])
    start, stop = rows
    if not 0 <= start <= stop <= info.shape[0]:
        raise ShapeError(
            f"{shown(info.name)}: rows {start} to {stop} were asked for; it has {info.shape[0]}"
        )
    return (start, stop)
