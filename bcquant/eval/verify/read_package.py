"""What a package (`.bcq`) holds: its tensors, and its settings, which are numbers and tables.

Weights are unpacked by numpy (`kernels/reference.py`), not by the library that runs the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import F32Array
from bcquant.eval.verify.certificate import Check
from bcquant.eval.verify.stored_weights import Integers, Rows
from bcquant.io.package import SUFFIX, open_package
from bcquant.io.package_index import (
    BIASES,
    BLOB_KINDS,
    FINAL_NORM,
    NORMS,
    POSITIONS,
    WINDOWS,
    ModelBlock,
    Section,
)
from bcquant.io.package_rules import tensor_shape
from bcquant.kernels.reference import Weight, unpack_weight
from bcquant.models.alibi import alibi_slopes
from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.models.source import ModelSource
from bcquant.runtime.native_weights import is_w8a8
from bcquant.spec.model_config import ModelConfig

_TENSORS = frozenset({*BLOB_KINDS, *BIASES, *NORMS, FINAL_NORM})
_HALF = 16  # bits of a blob of float16 values
_INT8_TOKEN = 2


def is_package(path: Path) -> bool:
    """Whether a path has a package's name."""
    return path.suffix.lower() == SUFFIX


class PackageWeights:
    """`StoredWeights` of a package.

    Attributes:
        path: of its first file.
        config: None; a package holds tables and no theta, see `check_package_settings`.
        model: its model block.
    """

    def __init__(self, path: Path) -> None:
        """Open it and compare every section with its digest.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        self.path = path
        self.config: ModelConfig | None = None
        self._package = open_package(path)
        try:
            self._package.verify()
        except CheckpointError:
            self._package.close()
            raise
        self.model: ModelBlock = self._package.model
        self._tensors = {s.name: s for s in self._package.sections if s.kind in _TENSORS}
        self._last: tuple[str, Weight] | None = None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `StoredWeights.shape`."""
        section = self._tensors.get(name)
        return None if section is None else tensor_shape(self.model, section.kind)

    def stored_as(self, name: str) -> str:
        """See `StoredWeights.stored_as`."""
        blob = self._package.shapes.get(self._tensors[name])
        if blob is None or blob.bits == _HALF:
            return "F32" if blob is None else "F16"
        is_whole = blob.group_size == blob.in_features
        grid = "whole rows" if is_whole else f"groups of {blob.group_size}"
        return f"{blob.bits}-bit, {grid}{', zeros' if blob.has_zeros else ''}"

    def integers(self, module: str) -> Integers | None:
        """See `StoredWeights.integers`."""
        section = self._tensors[f"{module}.weight"]
        if self._package.shapes[section].bits == _HALF:
            return None
        weight = self._weight(section)
        levels = weight.differences_NK().astype(np.int16)
        return Integers(levels, weight.scales_NG.astype(np.float32), weight.group_size)

    def values(self, name: str, rows: Rows) -> F32Array:
        """See `StoredWeights.values`."""
        section, cut = self._tensors[name], slice(*rows)
        if section.kind not in BLOB_KINDS:
            return np.frombuffer(self._package.data(section), "<f4")[cut].astype(np.float32)
        whole = self._weight(section)
        zeros = None if whole.zeros_NG is None else whole.zeros_NG[cut]
        part = Weight(
            whole.codes_NK[cut], whole.scales_NG[cut], zeros, whole.bits, whole.group_size
        )
        return part.values_NK().astype(np.float32)

    def table(self, kind: int, dtype: str) -> list[float] | None:
        """A table's numbers, None where the package has none of that kind."""
        section = self._package.find(kind)
        if section is None:
            return None
        found: list[float] = np.frombuffer(self._package.data(section), dtype).tolist()
        return found

    def close(self) -> None:
        """Unmap it."""
        self._package.close()

    def _weight(self, section: Section) -> Weight:
        """A blob, unpacked; the last one is kept."""
        if self._last is None or self._last[0] != section.name:
            self._last = section.name, unpack_weight(bytes(self._package.data(section)))
        return self._last[1]


def check_package_settings(
    source: ModelSource, end_ids: Sequence[int], stored: PackageWeights
) -> Check:
    """The numbers beside tensors that enter the arithmetic, and what ends a text.

    Args:
        end_ids: of the source's tokenizer.
    """
    ours, theirs = _of_source(source, end_ids), _of_package(stored)
    different = [key for key in ours if ours[key] != theirs[key]]
    problem = None
    if different:
        key = different[0]
        problem = f"{key} of the package: {_first_difference(ours[key], theirs[key])}"
    figures = {"settings": len(ours), "different": len(different)}
    return Check("settings", not different, figures, {"different": 0}, problem)


def _of_source(source: ModelSource, end_ids: Sequence[int]) -> dict[str, Any]:
    cfg = source.config
    if cfg.position == "alibi":
        positions = np.asarray(alibi_slopes(cfg.num_heads))
    else:
        base = base_frequencies(cfg.rope_theta, cfg.head_dim)
        positions = scaled_frequencies(base, cfg.rope_scaling)
    return {
        "num_heads": cfg.num_heads,
        "num_kv_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "rms_norm_eps": float(np.float32(cfg.rms_norm_eps)),
        "position": cfg.position,
        "positions": positions.astype(np.float32).tolist(),
        "windows": [float(size or 0) for size in cfg.windows],
        "tie_embeddings": cfg.tie_embeddings,
        "activations are int8 by token": is_w8a8(source),
        "end tokens": [i for i in end_ids if 0 <= i < cfg.vocab_size],
    }


def _of_package(stored: PackageWeights) -> dict[str, Any]:
    model = stored.model
    windows = stored.table(WINDOWS, "<u4") or [0] * model.num_layers
    return {
        "num_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.rms_norm_eps,
        "position": "alibi" if model.is_alibi else "rope",
        "positions": stored.table(POSITIONS, "<f4"),
        "windows": [float(size) for size in windows],
        "tie_embeddings": model.ties_head,
        "activations are int8 by token": model.activations == _INT8_TOKEN,
        "end tokens": list(model.eos_ids),
    }


def _first_difference(ours: Any, theirs: Any) -> str:
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        return f"number {at} is {theirs[at]:.6g}, and {ours[at]:.6g} in the source"
    return f"{theirs!r}, and {ours!r} in the source"
