"""Every section of a package: what it is, how large, and its bytes when they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bcquant.io.package_index import (
    BIASES,
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    MODEL_KINDS,
    NORMS,
    POSITIONS,
    WEIGHTS,
    WINDOWS,
    section_name,
)
from bcquant.models.alibi import alibi_slopes
from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.models.source import ModelSource
from bcquant.spec.model_config import ModelConfig

from .tensors import num_bytes, tensor_bytes


@dataclass(frozen=True)
class PlannedSection:
    """A section before its bytes are made.

    Attributes:
        kind, layer: as in the index.
        num_bytes: of it.
        make: its bytes; called once a write.
    """

    kind: int
    layer: int | None
    num_bytes: int
    make: Callable[[], bytes]

    @property
    def name(self) -> str:
        """Canonical tensor name, or what it is in words."""
        return section_name(self.kind, self.layer)


def planned_sections(source: ModelSource, texts: Mapping[int, bytes]) -> list[PlannedSection]:
    """All sections in the order of the index; no tensor is read.

    Args:
        texts: kind -> bytes of the sections that are no tensors, at least 1 byte each.
    """
    made = {(kind, None): data for kind, data in _tables(source.config).items()}
    made |= {(kind, None): data for kind, data in texts.items()}
    planned = [
        PlannedSection(kind, layer, len(data), functools.partial(bytes, data))
        for (kind, layer), data in made.items()
    ]
    for kind, layer in _tensor_keys(source):
        name = section_name(kind, layer)
        make = functools.partial(tensor_bytes, source, name)
        planned.append(PlannedSection(kind, layer, num_bytes(source, name), make))
    return sorted(planned, key=lambda s: (s.kind, -1 if s.layer is None else s.layer))


def _tensor_keys(source: ModelSource) -> list[tuple[int, int | None]]:
    """(kind, layer) of every tensor of the model."""
    keys: list[tuple[int, int | None]] = []
    for kind in (EMBEDDING, HEAD, FINAL_NORM):
        if source.has(MODEL_KINDS[kind]):
            keys.append((kind, None))
    for layer in range(source.config.num_layers):
        keys += [
            (kind, layer)
            for kind in (*WEIGHTS, *BIASES, *NORMS)
            if source.has(section_name(kind, layer))
        ]
    assert len(keys) == len(source.names()), "a tensor has no kind in the format"
    return keys


def _tables(cfg: ModelConfig) -> dict[int, bytes]:
    """Positions and windows."""
    if cfg.position == "alibi":
        positions = np.asarray(alibi_slopes(cfg.num_heads))
    else:
        base = base_frequencies(cfg.rope_theta, cfg.head_dim)
        positions = scaled_frequencies(base, cfg.rope_scaling)
    tables = {POSITIONS: positions.astype("<f4").tobytes()}
    if any(cfg.windows):
        tables[WINDOWS] = np.asarray([w or 0 for w in cfg.windows], "<u4").tobytes()
    return tables
