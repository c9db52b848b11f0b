"""A checkpoint of any kind, seen as canonical LLaMA tensors.

One set of names hides stored names and row splits (W_pack), GGUF's names and row order, quantized
modules, and Baichuan 2's NormHead, which is folded into lm_head here and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant import registry
from bcquant.errors import CheckpointError, ShapeError
from bcquant.io.checkpoint import (
    CheckpointReader,
    RawTensor,
    bf16_to_f32,
    f32_to_bf16,
    open_checkpoint,
)
from bcquant.io.closing import Closing
from bcquant.io.dtypes import FLOATS
from bcquant.io.json_file import read_json_object
from bcquant.models.architecture import (
    EMBEDDING,
    HEAD,
    Architecture,
    SourceRef,
    canonical_tensors,
    find_architecture,
    find_gguf_architecture,
)
from bcquant.models.gguf_config import (
    ROPE_FACTORS,
    gguf_name,
    llama3_scaling,
    parse_gguf,
    permuted_rows,
)
from bcquant.models.quantized_source import QuantizedSource, slice_rows
from bcquant.quant.grid import dequantize
from bcquant.quant.quant_configs import QuantSpec, parse_quant_config
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.model_config import ModelConfig
from bcquant.spec.quant_format import QuantFormat

F32Array = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Rows = tuple[int, int]

_BUFFERS = (".rotary_emb.inv_freq",)  # stored by old files, computed by us


def open_model(path_or_hub_id: str | Path, revision: str | None = None) -> ModelSource:
    """Open a checkpoint and check that it holds every tensor of its model.

    Args:
        path_or_hub_id: whatever `open_checkpoint` takes.
    Returns:
        a source; close it or use it as a context manager.
    Raises:
        CheckpointError: the files are missing, damaged, incomplete or of the wrong shape.
        ConfigError: the model or its quantization is of a kind that is not supported.
    """
    reader = open_checkpoint(path_or_hub_id, revision)
    try:
        return ModelSource(reader)
    except BaseException:
        reader.close()
        raise


class ModelSource(Closing):
    """Canonical tensors of an open checkpoint; it owns the reader.

    Attributes:
        path: the folder or file.
        reader: the checkpoint below.
        config: shape and arithmetic of the model.
        arch: its family table.
        quant: how its modules are quantized, None if they are float.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        """Find the family, read its config and compare every tensor's shape; no data is read.

        Raises:
            CheckpointError: a tensor is missing, of the wrong shape, or not one of the model's.
            ConfigError: the model is of a kind that is not supported.
        """
        self.reader = reader
        self.path = reader.path
        self.arch, self.config = _describe(reader)
        is_gguf = reader.kind == "gguf"
        self.quant: QuantSpec | None = None if is_gguf else _quant_spec(reader)
        self._quantized = QuantizedSource(reader, self.quant)
        self._shapes = dict(canonical_tensors(self.config))
        self._is_permuted = is_gguf and self.arch.gguf_permuted_qk
        self._refs = {name: self._locate(name) for name in self._shapes}
        self._check()

    def names(self) -> list[str]:
        """Canonical names of all tensors, in model order; tied models have no lm_head.weight."""
        return list(self._shapes)

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this canonical name."""
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a canonical tensor. CheckpointError: there is none of that name."""
        self._ref(name)
        return self._shapes[name]

    def stored_dtype(self, name: str) -> str:
        """ "F32", "F16", "BF16", "GGUF:Q4_1", ... or "quantized" (GPTQ, compressed-tensors)."""
        ref = self._ref(name)
        return "quantized" if self._is_quantized(ref) else self.reader.tensors[ref.name].dtype

    def weight(self, name: str, rows: Rows | None = None) -> F32Array:
        """A canonical tensor in float32, dequantized where it is quantized.

        Args:
            rows: first and one-past-last row; None = all.
        Raises:
            CheckpointError: there is no such tensor or it cannot be read.
            ShapeError: `rows` is not inside the tensor.
        """
        ref = self._ref(name)
        first, last = self._rows(name, rows)
        if self._is_quantized(ref):
            offset = ref.rows[0] if ref.rows else 0
            q = self._quantized.read(ref.name.removesuffix(".weight"))
            values = dequantize(q, (offset + first, offset + last))
        elif self._is_interleaved(name):
            values = self._deinterleaved(ref, first, last, as_f32=True)
        else:
            values = self.reader.read_f32(ref.name, self._stored_rows(ref, first, last))
        return _unit_rows(values) if name == HEAD and self.config.norm_head else values

    def quantized(self, module: str) -> QuantizedTensor | None:
        """The quantized weight of a module, None if it is stored as floats.

        Args:
            module: canonical name, e.g. "model.layers.0.self_attn.q_proj"; rows of a W_pack are
                sliced out of it.
        Raises:
            CheckpointError: there is no such module or it cannot be read.
        """
        ref = self._ref(f"{module}.weight")
        if not self._is_quantized(ref):
            return None
        q = self._quantized.read(ref.name.removesuffix(".weight"))
        return q if ref.rows is None else slice_rows(q, ref.rows)

    def format_of(self, module: str) -> QuantFormat | None:
        """How a module is quantized, None if it is stored as floats; no data is read.

        Raises:
            CheckpointError: there is no such module.
        """
        ref = self._ref(f"{module}.weight")
        if self.quant is None or not self._is_quantized(ref):
            return None
        return self.quant.format_of(ref.name.removesuffix(".weight"))

    def raw(self, name: str, rows: Rows | None = None) -> Array | RawTensor:
        """A canonical tensor in its stored type, for copying it into another checkpoint.

        GGUF block types and quantized modules come as float32. A NormHead is folded.

        Raises:
            CheckpointError: there is no such tensor or it cannot be read.
            ShapeError: `rows` is not inside the tensor.
        """
        ref = self._ref(name)
        dtype = self.stored_dtype(name)
        first, last = self._rows(name, rows)
        if dtype == "quantized" or dtype.startswith("GGUF:"):
            return self.weight(name, rows)
        if self._is_interleaved(name):
            stored = self._deinterleaved(ref, first, last, as_f32=False)
        else:
            stored = self.reader.read(ref.name, self._stored_rows(ref, first, last))
        if name == HEAD and self.config.norm_head:
            return _folded(stored, dtype)
        return RawTensor(dtype, stored.shape, stored) if dtype == "BF16" else stored

    def close(self) -> None:
        """Release the files; closing twice is fine."""
        self.reader.close()

    def _locate(self, name: str) -> SourceRef:
        if self.reader.kind == "gguf":
            return SourceRef(gguf_name(name))
        return self.arch.locate(self.config, name)

    def _ref(self, name: str) -> SourceRef:
        if name not in self._refs:
            advice = registry.nearest(name, list(self._refs))
            raise CheckpointError(f"{self.path}: the model has no tensor {name!r}; {advice}")
        return self._refs[name]

    def _is_quantized(self, ref: SourceRef) -> bool:
        module, _, suffix = ref.name.rpartition(".")
        return suffix == "weight" and bool(self._quantized.parts(module))

    def _rows(self, name: str, rows: Rows | None) -> Rows:
        size = self._shapes[name][0]
        first, last = rows or (0, size)
        if not 0 <= first <= last <= size:
            raise ShapeError(f"{name}: rows {first} to {last} were asked for; it has {size}")
        return first, last

    def _stored_rows(self, ref: SourceRef, first: int, last: int) -> Rows:
        offset = ref.rows[0] if ref.rows else 0
        return offset + first, offset + last

    def _is_interleaved(self, name: str) -> bool:
        return self._is_permuted and (".q_proj." in name or ".k_proj." in name)

    def _deinterleaved(self, ref: SourceRef, first: int, last: int, as_f32: bool) -> Array:
        """Rows of a GGUF Q or K in canonical order; whole heads are read."""
        size = self.config.head_dim
        low, high = first // size * size, -(-last // size) * size
        read = self.reader.read_f32 if as_f32 else self.reader.read
        stored: Array = read(ref.name, (low, high))
        return stored[permuted_rows(high - low, size)[first - low : last - low]]

    def _check(self) -> None:
        """Compare the stored tensors with those that the model needs, by name, shape and type."""
        needed: dict[str, tuple[int, ...]] = {}
        for name, ref in self._refs.items():
            shape = self._shapes[name]
            rows = max(ref.rows[1] if ref.rows else shape[0], needed.get(ref.name, (0,))[0])
            needed[ref.name] = (rows, *shape[1:])
        used: set[str] = set()
        for stored, shape in needed.items():
            module, _, suffix = stored.rpartition(".")
            parts = self._quantized.parts(module) if suffix == "weight" else ()
            if parts and len(shape) != 2:
                raise CheckpointError(f"{self.path}: {module} is quantized; it is no Linear")
            if parts:
                self._quantized.check(module, shape)
            else:
                self._check_float(stored, shape)
            used.update(parts or (stored,))
        for name in self.reader.tensors.keys() - used:
            self._check_extra(name)

    def _check_float(self, stored: str, shape: tuple[int, ...]) -> None:
        info = self.reader.tensors.get(stored)
        if info is None:
            raise CheckpointError(
                f"{self.path}: {stored!r} is missing; the {self.arch.key} model of its config "
                f"needs it with shape {list(shape)}"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{self.path}: {stored!r} has shape {list(info.shape)}; the {self.arch.key} model "
                f"of its config needs {list(shape)}"
            )
        if info.dtype not in FLOATS and not info.dtype.startswith("GGUF:"):
            raise CheckpointError(f"{self.path}: {stored!r} is {info.dtype}; floats are needed")

    def _check_extra(self, name: str) -> None:
        """Refuse a tensor that the decoder would not use: its model computes something else."""
        if name.endswith(_BUFFERS) or name == ROPE_FACTORS:
            return
        if name == HEAD:  # tied by the config, and stored all the same
            self._check_float(HEAD, self._shapes[EMBEDDING])
            last = self.config.vocab_size
            for rows in ((0, min(16, last)), (max(0, last - 16), last)):
                if not np.array_equal(
                    self.reader.read(HEAD, rows), self.reader.read(EMBEDDING, rows)
                ):
                    raise CheckpointError(
                        f"{self.path}: tie_word_embeddings is true but {HEAD!r} differs from the "
                        "embedding; correct the config"
                    )
            return
        if name.endswith(".bias") and not self.reader.read_f32(name).any():
            return  # some writers give every quantized Linear a bias of zeros
        raise CheckpointError(
            f"{self.path}: {name!r} is not a tensor of the {self.arch.key} model of its config; "
            "the config is of another model, or a feature of it is not supported"
        )


def _describe(reader: CheckpointReader) -> tuple[Architecture, ModelConfig]:
    if reader.kind != "gguf":
        if not reader.config:
            raise CheckpointError(
                f"{reader.path}: there is no config.json beside the weights; add it"
            )
        arch = find_architecture(reader.config)
        return arch, arch.parse(reader.config)
    arch = find_gguf_architecture(reader.metadata)
    shapes = {name: info.shape for name, info in reader.tensors.items()}
    cfg = parse_gguf(arch, reader.metadata, shapes)
    if ROPE_FACTORS in reader.tensors:
        factors = reader.read_f32(ROPE_FACTORS)
        cfg = replace(cfg, rope_scaling=llama3_scaling(factors, cfg.rope_theta, cfg.head_dim))
    return arch, cfg


def _quant_spec(reader: CheckpointReader) -> QuantSpec | None:
    folder = reader.path if reader.path.is_dir() else reader.path.parent
    path = folder / "quantize_config.json"
    return parse_quant_config(reader.config, read_json_object(path) if path.exists() else None)


def _unit_rows(weight_VC: F32Array) -> F32Array:
    """Every row divided by its L2 norm, which NormHead does before each use."""
    norms = np.linalg.norm(weight_VC, axis=1, keepdims=True)
    return np.asarray(weight_VC / np.maximum(norms, np.float32(1e-12)), np.float32)


def _folded(stored: Array, dtype: str) -> Array | RawTensor:
    values = bf16_to_f32(stored) if dtype == "BF16" else stored.astype(np.float32)
    unit = _unit_rows(values)
    if dtype == "BF16":
        return RawTensor(dtype, stored.shape, f32_to_bf16(unit))
    return unit.astype(stored.dtype)
