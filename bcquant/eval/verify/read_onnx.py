"""Weights of an ONNX export: the graph is parsed without its data, which is mapped.

A quantized weight is found by the node that uses it, its module by the initializer's name, which is
the module's and one more part: "model.layers.0.mlp.up_proj.<part>".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, ShapeError
from bcquant.eval.verify.backend import F32Array
from bcquant.eval.verify.stored_weights import Integers, Rows
from bcquant.io.checkpoint import bf16_to_f32
from bcquant.io.mapped_file import MappedFile
from bcquant.io.onnx_file import read_onnx
from bcquant.quant.onnx_blocks import (
    Blocks,
    Blockwise,
    NBits,
    from_blockwise_dq,
    from_matmul_nbits,
)
from bcquant.spec.model_config import ModelConfig

MODEL_FILE = "model.onnx"
# TensorProto.DataType -> (name, numpy type of the bytes, bits of an element).
_TYPES: dict[int, tuple[str, str, int]] = {
    1: ("F32", "<f4", 32), 2: ("U8", "u1", 8), 3: ("I8", "i1", 8), 6: ("I32", "<i4", 32),
    7: ("I64", "<i8", 64), 10: ("F16", "<f2", 16), 16: ("BF16", "<u2", 16), 21: ("U4", "u1", 4),
    22: ("I4", "u1", 4), 25: ("U2", "u1", 2),
}  # fmt: skip
# Operators that take a quantized weight, and which input that is.
_WEIGHT_INPUT = {
    "MatMulNBits": 1, "DequantizeLinear": 0, "GatherBlockQuantized": 0, "MatMulInteger": 1,
}  # fmt: skip
_PASSED = ("Cast", "Identity")  # may stand between an initializer and its use


class _Use(NamedTuple):
    """A quantized weight of the graph: the node that takes it, and its inputs by position."""

    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, int]


class OnnxWeights:
    """`StoredWeights` of a folder with model.onnx.

    Attributes:
        path: the folder.
        config: None; a graph does not say it.
        graph: the GraphProto.
    """

    def __init__(self, folder: Path) -> None:
        """Parse the graph.

        Raises:
            CheckpointError: it is missing or damaged.
            ConfigError: the onnx package is not installed.
        """
        self.path = folder
        self.config: ModelConfig | None = None
        self.graph: Any = read_onnx(folder / MODEL_FILE).graph
        self._tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self._files: dict[str, MappedFile] = {}
        self._uses = self._find_uses()
        self._last: tuple[str, Blocks] | None = None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `StoredWeights.shape`."""
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in self._uses:
            try:
                return self._shape(self._uses[module])
            except (KeyError, ValueError, IndexError) as error:
                raise self._contradiction(module, error) from error
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(tensor.dims)

    def stored_as(self, name: str) -> str:
        """See `StoredWeights.stored_as`."""
        module = name.removesuffix(".weight")
        if module in self._uses:
            use = self._uses[module]
            bits = use.attributes.get("bits") or _TYPES[self._tensor(_codes(use)).data_type][2]
            return f"{use.op} {bits}-bit"
        return _TYPES[self._tensor(name).data_type][0]

    def integers(self, module: str) -> Integers | None:
        """See `StoredWeights.integers`."""
        if module not in self._uses:
            return None
        blocks = self._blocks(module)
        width = self._width(module, blocks)
        levels = blocks.codes_NK.astype(np.int16) - _per_column(
            blocks.zeros_NG.astype(np.int16), width, blocks.codes_NK.shape[1]
        )
        return Integers(levels, blocks.scales_NG.astype(np.float32), width)

    def values(self, name: str, rows: Rows) -> F32Array:
        """See `StoredWeights.values`."""
        found = self.integers(name.removesuffix(".weight"))
        if found is not None and name.endswith(".weight"):
            part = slice(*rows)
            k = found.levels_NK.shape[1]
            scales = _per_column(found.scales_NG[part], found.width, k)
            return np.asarray(found.levels_NK[part].astype(np.float32) * scales, np.float32)
        return _as_f32(self._read(name, rows), self._tensor(name).data_type)

    def epsilons(self) -> dict[str, float]:
        """Every node's `epsilon`, by the node's name: those of the norms."""
        return {
            node.name: float(attribute.f)
            for node in self.graph.node
            for attribute in node.attribute
            if attribute.name == "epsilon"
        }

    def close(self) -> None:
        """Unmap the data files."""
        for file in self._files.values():
            file.close()

    def _find_uses(self) -> dict[str, _Use]:
        uses: dict[str, _Use] = {}
        casts = {n.output[0]: n.input[0] for n in self.graph.node if n.op_type in _PASSED}
        for node in self.graph.node:
            if node.op_type not in _WEIGHT_INPUT:
                continue
            inputs = tuple(casts.get(name, name) for name in node.input)
            name = inputs[_WEIGHT_INPUT[node.op_type]]
            if name in self._tensors:
                module = name.rpartition(".")[0]
                numbers = {a.name: int(a.i) for a in node.attribute}
                uses[module] = _Use(node.op_type, inputs, numbers)
        return uses

    def _shape(self, use: _Use) -> tuple[int, int]:
        dims = tuple(self._tensor(_codes(use)).dims)
        if use.op == "MatMulNBits":
            return use.attributes["N"], use.attributes["K"]
        if use.op == "GatherBlockQuantized":
            return dims[0], dims[1] * 8 // use.attributes["bits"]
        return dims[1], dims[0]

    def _blocks(self, module: str) -> Blocks:
        """Codes, scales and zeros of a module; the last one stays in memory."""
        if self._last is None or self._last[0] != module:
            try:
                self._last = (module, self._decode(module, self._uses[module]))
            except (ShapeError, KeyError, ValueError) as error:
                raise self._contradiction(module, error) from error
        return self._last[1]

    def _decode(self, module: str, use: _Use) -> Blocks:
        inputs = [*use.inputs, "", "", ""]
        codes = self._tensor(_codes(use))
        if use.op == "MatMulNBits":
            zeros = self._read(inputs[3]) if inputs[3] else None
            stored = NBits(
                use.attributes["bits"], use.attributes["block_size"],
                self._read(codes.name), self._read(inputs[2]), zeros,
            )  # fmt: skip
            return from_matmul_nbits(stored, use.attributes["K"])
        if use.op == "GatherBlockQuantized":
            n, k = self._shape(use)
            size = use.attributes["block_size"]
            rows = self._read(codes.name).reshape(n, k // size, -1)
            return from_matmul_nbits(
                NBits(use.attributes["bits"], size, rows, self._read(inputs[2]), None), k
            )
        if use.op == "MatMulInteger":
            return self._int8(module, codes)
        bits = _TYPES[codes.data_type][2]
        k, n = codes.dims
        offset = 1 << (bits - 1) if _is_signed(codes.data_type) else 0
        scales = self._read(inputs[1])
        data = self._read(codes.name)
        zeros = self._read(inputs[2]) if inputs[2] else np.zeros(-(-scales.size * bits // 8), "u1")
        stored_dq = Blockwise(
            bits, use.attributes.get("block_size", 0), _unsigned(data, bits, offset), scales,
            _unsigned(zeros, bits, offset),
        )  # fmt: skip
        return from_blockwise_dq(stored_dq, k, n)

    def _int8(self, module: str, codes: Any) -> Blocks:
        """W8A8: [K, N] codes, int8 or uint8 about 128, one scale a column."""
        offset = 128 if _is_signed(codes.data_type) else 0
        codes_NK = _unsigned(self._read(codes.name), 8, offset).reshape(tuple(codes.dims)).T
        scales = self._read(f"{module}.scales").reshape(-1, 1)
        return Blocks(codes_NK, scales, np.full(scales.shape, 128, np.uint8))

    def _width(self, module: str, blocks: Blocks) -> int:
        size = self._uses[module].attributes.get("block_size", 0)
        return size if blocks.scales_NG.shape[1] > 1 else blocks.codes_NK.shape[1]

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path / MODEL_FILE}: there is no initializer {name!r}")
        return self._tensors[name]

    def _read(self, name: str, rows: Rows | None = None) -> npt.NDArray[Any]:
        """An initializer's elements; 4-bit ones stay packed bytes, flat."""
        tensor = self._tensor(name)
        if tensor.data_type not in _TYPES:
            raise CheckpointError(
                f"{self.path / MODEL_FILE}: {name!r} has element type {tensor.data_type}; export "
                "the model again"
            )
        _, kind, bits = _TYPES[tensor.data_type]
        shape = tuple(tensor.dims)
        first, last = rows or (0, shape[0] if shape else 1)
        step = math.prod(shape[1:])
        skipped, count = first * step * bits // 8, -(-(last - first) * step * bits // 8)
        if not tensor.raw_data:
            raw = self._external(tensor, skipped, count)
        elif skipped + count <= len(tensor.raw_data):
            raw = np.frombuffer(tensor.raw_data, np.uint8, count, skipped)
        else:
            raise CheckpointError(
                f"{self.path / MODEL_FILE}: {name!r} has {len(tensor.raw_data)} bytes; "
                f"{skipped + count} are needed for its shape {list(shape)}"
            )
        values = raw.view(kind)
        return values.reshape(last - first, *shape[1:]) if bits >= 8 and shape else values

    def _external(self, tensor: Any, skipped: int, count: int) -> npt.NDArray[np.uint8]:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        location = facts.get("location", "")
        if not location or Path(location).name != location:
            raise CheckpointError(
                f"{self.path / MODEL_FILE}: the data of {tensor.name!r} is neither inside nor in a "
                "file beside it"
            )
        if location not in self._files:
            self._files[location] = MappedFile(self.path / location)
        file, offset = self._files[location], facts.get("offset", "0")
        # Before anything of that size is allocated.
        if not offset.isdecimal() or not 0 <= int(offset) + skipped <= file.size - count:
            raise CheckpointError(
                f"{file.path}: {tensor.name!r} needs {skipped + count} bytes from {offset} but the "
                f"file has {file.size}; export the model again"
            )
        raw = np.empty(count, np.uint8)
        file.copy_into(raw, int(offset) + skipped)
        return raw

    def _contradiction(self, module: str, error: Exception) -> CheckpointError:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return CheckpointError(
            f"{self.path / MODEL_FILE}: {module} contradicts itself ({said}); export the model "
            "again"
        )


def _codes(use: _Use) -> str:
    return use.inputs[_WEIGHT_INPUT[use.op]]


def _is_signed(data_type: int) -> bool:
    return _TYPES[data_type][0].startswith("I")


def _unsigned(data: npt.NDArray[Any], bits: int, offset: int) -> npt.NDArray[np.uint8]:
    """Bytes of codes moved from -2^(bits-1) .. to 0 ..: the top bit of each flips."""
    raw = data.view(np.uint8)
    if not offset:
        return raw
    return raw ^ np.uint8(0x80 if bits == 8 else 0x88)


def _per_column(values_NG: npt.NDArray[Any], width: int, k: int) -> npt.NDArray[Any]:
    return np.repeat(values_NG, width, axis=1)[:, :k]


def _as_f32(values: npt.NDArray[Any], data_type: int) -> F32Array:
    return bf16_to_f32(values) if data_type == 16 else values.astype(np.float32)
