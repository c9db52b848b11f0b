"""Faults put into a written export, byte by byte: what `bcquant verify` has to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.io.gguf_header import read_header

Bytes = npt.NDArray[np.uint8]
Edit = Callable[[Bytes], None]


def swap_first_nibbles(data: Bytes) -> None:
    """Exchange the two 4-bit codes of the first byte whose codes differ."""
    flat = data.reshape(-1)
    low, high = flat & 15, flat >> 4
    where = int(np.flatnonzero(low != high)[0])
    flat[where] = low[where] << 4 | high[where]


def edit_onnx_tensor(folder: Path, name: str, edit: Callable[[Any], None], dtype: str) -> None:
    """Change an initializer of model.onnx in place, as an array of `dtype` and of its shape."""
    import onnx

    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    if not place:
        values = np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims)).copy()
        edit(values)
        tensor.raw_data = values.tobytes()
        path.write_bytes(model.SerializeToString())
        return
    file = folder / place["location"]
    offset, length = int(place.get("offset", 0)), int(place["length"])
    data = bytearray(file.read_bytes())
    values = np.frombuffer(bytes(data[offset : offset + length]), dtype).copy()
    edit(values.reshape(tuple(tensor.dims)))
    data[offset : offset + length] = values.tobytes()
    file.write_bytes(data)


def edit_onnx_nodes(folder: Path, edit: Callable[[Any], None]) -> None:
    """Call `edit` with every node of model.onnx and write the graph back."""
    import onnx

    path = folder / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        edit(node)
    path.write_bytes(model.SerializeToString())


def edit_gguf_tensor(path: Path, name: str, edit: Edit) -> None:
    """Change a tensor's bytes, given as (rows, bytes of a row), in place."""
    place = read_header(path).tensors[name]
    data = bytearray(path.read_bytes())
    part = slice(place.offset, place.offset + place.num_bytes)
    values = np.frombuffer(bytes(data[part]), np.uint8).reshape(-1, place.row_bytes).copy()
    edit(values)
    data[part] = values.tobytes()
    path.write_bytes(data)


def set_gguf_key(path: Path, key: str, value: float | bool) -> None:
    """Change a number or a flag among the key/values, in place."""
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    field = reader.get_field(key)
    assert field is not None, key
    field.parts[field.data[0]][0] = value
    reader.data.flush()


def interleave_heads(rows: npt.NDArray[Any], head_dim: int) -> None:
    """Put rows of Q or K into GGUF's rotary order, in place."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    rows[:] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def separate_heads(rows: npt.NDArray[Any], head_dim: int) -> None:
    """Undo `interleave_heads`, in place."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    rows[:] = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
