"""What each tensor of a model becomes in a GGUF file, and its bytes, a few rows at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import ExportError, SolverError
from bcquant.io.dtypes import STORAGE, RawTensor
from bcquant.io.gguf_header import GgufTensor, read_header
from bcquant.io.mapped_file import MappedFile
from bcquant.models.architecture import EMBEDDING, HEAD
from bcquant.models.gguf_config import gguf_name, permuted_rows
from bcquant.models.quantized_source import slice_rows
from bcquant.models.source import ModelSource, Rows
from bcquant.quant.gguf_blocks import (
    KINDS,
    exact_kinds,
    fits,
    from_gguf_blocks,
    holds_groups,
    to_gguf_blocks,
)
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

from .file import Tensor
from .options import GgufOptions

Array = npt.NDArray[Any]

FLOAT_TYPES = {"F32": 0, "F16": 1, "BF16": 30}
_VALUES_AT_ONCE = 2 << 20
_ROUNDED = QuantFormat(8, 32)  # Q8_0


@dataclass(frozen=True)
class Choice:
    """How one canonical tensor is stored.

    Attributes:
        name: canonical, with its suffix.
        kind: a key of FLOAT_TYPES or of `gguf_blocks.KINDS`, or "copy" for the blocks of a GGUF
            source as they are.
        is_quantized: it comes from integers of the checkpoint.
        error: relative error of storing it so; 0.0 = none, None = not measured yet.
    """

    name: str
    kind: str
    is_quantized: bool = False
    error: float | None = 0.0


class Storage:
    """Chooses how tensors are stored and makes their bytes.

    Attributes:
        source: canonical tensors.
        options: flags of the export.
        is_permuted: rows of Q and K are interleaved in the file.
    """

    def __init__(self, source: ModelSource, options: GgufOptions, is_permuted: bool) -> None:
        self.source, self.options, self.is_permuted = source, options, is_permuted
        is_gguf = source.reader.kind == "gguf"
        self._blocks = read_header(source.path).tensors if is_gguf else {}

    def first_choice(self, name: str) -> Choice:
        """From headers alone; a choice whose error is None needs `measured`."""
        if len(self.source.shape(name)) == 1:
            # llama.cpp adds and multiplies vectors in float32 only.
            return Choice(name, "F32", error=self._float_error(name))
        if not self._is_quantized(name):
            return self._float_choice(name)
        fmt = self.source.format_of(name.removesuffix(".weight"))
        assert fmt is not None, name
        k = self.source.shape(name)[1]
        exact = exact_kinds(fmt, k)
        if self.options.asym_as == "q4_1" and exact[:1] == ("Q5_0",):
            return Choice(name, "Q4_1", True, None)
        if exact:
            return Choice(name, exact[0], True)
        if holds_groups(fmt, k, "Q8_0"):
            return Choice(name, "Q8_0", True, None)  # 8-bit asymmetric: its values decide
        return self._unfit(name)

    def _unfit(self, name: str) -> Choice:
        kind = self.options.unfit_as.upper()
        return Choice(name, kind, True, 0.0 if kind == "F32" else None)

    def _float_choice(self, name: str) -> Choice:
        stored = self.source.stored_dtype(name)
        if self._is_rounded(name):
            return Choice(name, "Q8_0", error=None)
        if self._is_folded(name):
            return Choice(name, "F32")  # folding a NormHead gives float32 values
        if stored.startswith("GGUF:"):
            return Choice(name, "copy")
        if stored.startswith("F8"):
            return Choice(name, "F16")  # holds every 8-bit float
        kind = stored if stored in FLOAT_TYPES else "F32"
        return Choice(name, kind, error=self._float_error(name))

    def _is_rounded(self, name: str) -> bool:
        """A float embedding or head that --embedding-bits 8 rounds, if blocks divide its rows."""
        is_asked = self.options.embedding_bits == 8 and name in (EMBEDDING, HEAD)
        return is_asked and self.source.shape(name)[1] % _ROUNDED.group_size == 0

    def _float_error(self, name: str) -> float | None:
        """Only float64 loses something in float32."""
        return None if self.source.stored_dtype(name) == "F64" else 0.0

    def measured(self, choice: Choice) -> Choice:
        """The choice with its error, or another one if the values do not allow it.

        Raises:
            ExportError: a value is beyond what the format holds.
            CheckpointError: the tensor cannot be read.
        """
        if choice.is_quantized:
            q = self._quantized(choice.name)  # a damaged one is found before a byte is written
            if choice.kind == "Q8_0":
                is_exact = choice.error == 0.0 or fits(q, "Q8_0")
                choice = Choice(choice.name, "Q8_0", True) if is_exact else self._unfit(choice.name)
        if choice.error is not None:
            return choice
        change, total, largest = 0.0, 0.0, 0.0
        for rows in self._chunks(choice.name):
            exact = self._exact(choice.name, rows)
            with np.errstate(over="ignore"):
                stored = self._restored(choice, rows)
            largest = max(largest, float(np.abs(exact).max()))
            change += float(np.square(stored - exact).sum())
            total += float(np.square(exact).sum())
        if not np.isfinite(change):
            if choice.kind == "F16" and largest <= float(np.finfo(np.float32).max):
                return Choice(choice.name, "F32", True)
            raise ExportError(
                f"{choice.name}: a value of {largest:.4g} does not fit into {choice.kind}"
            )
        error = float(np.sqrt(change / total)) if total else float(np.sqrt(change))
        return Choice(choice.name, choice.kind, choice.is_quantized, error)

    def tensor(self, choice: Choice) -> Tensor:
        """The file's tensor; its parts are made when they are asked for."""
        shape = self.source.shape(choice.name)
        target = gguf_name(choice.name)
        if choice.kind == "copy":
            place = self._blocks[target]
            copied = functools.partial(self._copied, place)
            return Tensor(target, place.ggml_type, shape, place.num_bytes, copied)

        def made() -> Iterator[Array]:
            for rows in self._chunks(choice.name):
                yield self._stored(choice, rows)

        if choice.kind in KINDS:
            kind = KINDS[choice.kind]
            return Tensor(target, kind.ggml_type, shape, shape[0] * kind.row_bytes(shape[1]), made)
        num_bytes = int(np.prod(shape)) * STORAGE[choice.kind].itemsize
        return Tensor(target, FLOAT_TYPES[choice.kind], shape, num_bytes, made)

    def stored_as(self, choice: Choice) -> str:
        """The type's name, for the plan."""
        if choice.kind == "copy":
            return self.source.stored_dtype(choice.name).removeprefix("GGUF:") + ", copied"
        return choice.kind

    def _chunks(self, name: str) -> Iterator[Rows]:
        """Row ranges of whole heads, in file order."""
        shape = self.source.shape(name)
        head = self.source.config.head_dim if self._is_interleaved(name) else 1
        step = max(1, _VALUES_AT_ONCE // (int(np.prod(shape[1:])) * head)) * head
        for first in range(0, shape[0], step):
            yield first, min(first + step, shape[0])

    def _is_interleaved(self, name: str) -> bool:
        return self.is_permuted and (".q_proj." in name or ".k_proj." in name)

    def _in_file_order(self, values: Array, name: str) -> Array:
        """Canonical rows of whole heads as the file has them."""
        if not self._is_interleaved(name):
            return values
        return values[np.argsort(permuted_rows(len(values), self.source.config.head_dim))]

    def _is_quantized(self, name: str) -> bool:
        """A quantized NormHead is folded, which its integers cannot be."""
        return self.source.stored_dtype(name) == "quantized" and not self._is_folded(name)

    def _quantized(self, name: str) -> QuantizedTensor:
        q = self.source.quantized(name.removesuffix(".weight"))
        assert q is not None, name
        return q

    def _stored(self, choice: Choice, rows: Rows) -> Array:
        """Rows as they are stored: blocks in bytes, or floats (BF16 as its bits)."""
        name = choice.name
        if choice.kind in KINDS:
            return self._in_file_order(self._blocks_of(choice, rows), name)
        if self.source.stored_dtype(name) == choice.kind and not self._is_folded(name):
            raw = self.source.raw(name, rows)
            values: Array = raw.data if isinstance(raw, RawTensor) else raw
        else:
            with np.errstate(over="ignore"):
                values = self._exact(name, rows).astype(STORAGE[choice.kind])
        return self._in_file_order(values, name)

    def _blocks_of(self, choice: Choice, rows: Rows) -> Array:
        """Rows as blocks: the checkpoint's integers, or an embedding rounded to nearest."""
        name = choice.name
        if choice.is_quantized:
            q = slice_rows(self._quantized(name), rows)
        else:
            try:
                q = quantize_nearest(self.source.weight(name, rows), _ROUNDED)
            except SolverError as error:
                raise ExportError(f"{name} cannot be rounded to 8 bits: {error}") from error
        return to_gguf_blocks(q, choice.kind)

    def _is_folded(self, name: str) -> bool:
        return name == HEAD and self.source.config.norm_head

    def _exact(self, name: str, rows: Rows) -> Array:
        """Canonical rows at full precision."""
        if self.source.stored_dtype(name) == "F64":
            raw = self.source.raw(name, rows)
            assert not isinstance(raw, RawTensor)
            return raw
        if self._is_quantized(name):
            return dequantize(self._quantized(name), rows)
        return self.source.weight(name, rows)

    def _restored(self, choice: Choice, rows: Rows) -> Array:
        """Canonical rows as a reader of the file gets them, float64."""
        exact = self._exact(choice.name, rows)
        if choice.kind in KINDS:
            values = from_gguf_blocks(self._blocks_of(choice, rows), choice.kind).dequantize()
            return values.astype(np.float64)
        return exact.astype(STORAGE[choice.kind]).astype(np.float64)

    def _copied(self, place: GgufTensor) -> Iterator[Array]:
        step = _VALUES_AT_ONCE
        with MappedFile(self.source.path) as file:
            for first in range(0, place.num_bytes, step):
                raw = np.empty(min(step, place.num_bytes - first), np.uint8)
                file.copy_into(raw, place.offset + first)
                yield raw
