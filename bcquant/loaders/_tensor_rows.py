"""Every tensor of a checkpoint from its headers, and the shapes of the quantized modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bcquant.errors import CheckpointError
from bcquant.io.checkpoint import CheckpointReader, TensorInfo
from bcquant.io.dtypes import tensor_bytes
from bcquant.quant.quant_configs import QuantSpec
from bcquant.spec.quant_format import QuantFormat

# Tensors that belong to the weight named first in each row; they carry no weights of their own.
_QUANTIZED_PARTS = {
    "qweight": ("qzeros", "scales", "g_idx"),
    "weight_packed": ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "weight": ("weight_scale", "weight_zero_point", "input_scale"),
}


@dataclass(frozen=True)
class TensorRow:
    """One stored tensor.

    Attributes:
        num_bytes: of its data in the file.
        num_weights: numbers of the model that it stands for; 0 for a part of another tensor
            (scales, zeros, indexes) and for a packed tensor that cannot be interpreted.
        bits_per_weight: bits of it and its parts over `num_weights`; None where that is 0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    num_weights: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class Linear:
    """A quantized weight: its format and its shape (N, K)."""

    format: QuantFormat
    n: int
    k: int


def tensor_rows(
    reader: CheckpointReader, quant: QuantSpec | None
) -> tuple[tuple[TensorRow, ...], tuple[Linear, ...]]:
    """Every tensor, and the quantized weights without repetition.

    Raises:
        CheckpointError: a weight_shape contradicts its packed words.
    """
    tensors = reader.tensors
    sizes = {name: _num_bytes(info) for name, info in tensors.items()}
    mains, parts = _quantized_modules(tensors)
    linears: dict[Linear, None] = {}
    rows = []
    for name, info in tensors.items():
        weights, size = math.prod(info.shape), sizes[name]
        if name in parts:
            weights = 0
        elif name in mains:
            shape = _weight_shape(reader, name, quant)
            weights = math.prod(shape) if shape else 0
            size += sum(sizes[part] for part in mains[name])
            fmt = quant.format_of(name.rpartition(".")[0]) if quant else None
            if shape and fmt:
                linears[Linear(fmt, *shape)] = None
        bits = 8 * size / weights if weights else None
        rows.append(TensorRow(name, info.dtype, info.shape, sizes[name], weights, bits))
    return tuple(rows), tuple(linears)


def is_packed(name: str, dtype: str) -> bool:
    """Whether a stored tensor holds the codes of a quantized module."""
    suffix = name.rpartition(".")[2]
    return suffix in _QUANTIZED_PARTS and (suffix != "weight" or dtype == "I8")


def _quantized_modules(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, list[str]], set[str]]:
    """Main tensor of each quantized module -> its parts, and the set of all parts."""
    mains: dict[str, list[str]] = {}
    for name, info in tensors.items():
        module, _, suffix = name.rpartition(".")
        if not is_packed(name, info.dtype):
            continue
        around = (f"{module}.{part}" for part in _QUANTIZED_PARTS[suffix])
        mains[name] = [part for part in around if part in tensors]
    return mains, {part for found in mains.values() for part in found}


def _weight_shape(
    reader: CheckpointReader, name: str, quant: QuantSpec | None
) -> tuple[int, int] | None:
    """(N, K) of a quantized module; None where the config does not say how it is packed."""
    module, _, suffix = name.rpartition(".")
    stored = reader.tensors[name].shape
    if len(stored) != 2:
        return None
    if suffix == "weight":
        return (stored[0], stored[1])
    fmt = quant.format_of(module) if quant else None
    if fmt is None:
        return None
    if quant is not None and quant.method == "awq":
        return (stored[1] * 32 // fmt.bits, stored[0])
    if suffix == "qweight":
        index = reader.tensors.get(f"{module}.g_idx")
        return (stored[1], index.shape[0] if index and index.shape else stored[0] * 32 // fmt.bits)
    if f"{module}.weight_shape" in reader.tensors:
        said = [int(i) for i in reader.read(f"{module}.weight_shape").reshape(-1)]
        # Checked against the packed words: the numbers are a file's claim.
        if len(said) == 2 and said[0] == stored[0] and -(-said[1] * fmt.bits // 32) == stored[1]:
            return (said[0], said[1])
        raise CheckpointError(
            f"{reader.path}: {module}.weight_shape says {said} but weight_packed has "
            f"{list(stored)} words of {fmt.bits}-bit codes; download it again"
        )
    return (stored[0], stored[1] * 32 // fmt.bits)


def _num_bytes(info: TensorInfo) -> int:
    if not info.dtype.startswith("GGUF:"):
        return tensor_bytes(info.dtype, info.shape)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.dtype.removeprefix("GGUF:")]]
    return math.prod(info.shape) // int(block) * int(block_bytes)
