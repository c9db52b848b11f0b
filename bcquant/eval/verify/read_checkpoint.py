"""Weights of an export that is itself a checkpoint that bcquant reads: a folder or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from bcquant.eval.verify.backend import F32Array
from bcquant.eval.verify.stored_weights import Integers, Rows, integers_of
from bcquant.models.source import ModelSource, open_model
from bcquant.spec.model_config import ModelConfig


class CheckpointWeights:
    """`StoredWeights` of a checkpoint folder.

    Attributes:
        path: the folder or file.
        config: its own model config.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            CheckpointError, ConfigError: as `open_model`.
        """
        self._source: ModelSource = open_model(path)
        self.path = path
        self.config: ModelConfig | None = self._source.config

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `StoredWeights.shape`."""
        return self._source.shape(name) if self._source.has(name) else None

    def stored_as(self, name: str) -> str:
        """See `StoredWeights.stored_as`."""
        dtype = self._source.stored_dtype(name)
        if dtype != "quantized":
            return dtype.removeprefix("GGUF:")
        fmt = self._source.format_of(name.removesuffix(".weight"))
        return dtype if fmt is None else f"{fmt.bits}-bit, groups of {fmt.group_size}"

    def integers(self, module: str) -> Integers | None:
        """See `StoredWeights.integers`."""
        q = self._source.quantized(module)
        return None if q is None else integers_of(q)

    def values(self, name: str, rows: Rows) -> F32Array:
        """See `StoredWeights.values`."""
        return self._source.weight(name, rows)

    @property
    def is_float(self) -> bool:
        """No module of it is quantized."""
        return self._source.quant is None

    def close(self) -> None:
        """Close it."""
        self._source.close()
