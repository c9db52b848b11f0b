"""Integers and scales of a GGUF file's blocks, in canonical row order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bcquant.errors import ShapeError
from bcquant.eval.verify.read_checkpoint import CheckpointWeights
from bcquant.eval.verify.stored_weights import Integers
from bcquant.io.gguf_header import GgufTensor, read_header
from bcquant.io.mapped_file import MappedFile
from bcquant.models.gguf_config import gguf_name, permuted_rows
from bcquant.quant.gguf_blocks import KINDS, BlockValues, from_gguf_blocks


class GgufWeights(CheckpointWeights):
    """`StoredWeights` of a GGUF file.

    Attributes:
        path: the file.
        config: of its key/values.
        tensors: places of its tensors under GGUF's names.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            CheckpointError, ConfigError: as `open_model`.
        """
        super().__init__(path)
        self.tensors: dict[str, GgufTensor] = read_header(path).tensors
        self._file = MappedFile(path)

    def integers(self, module: str) -> Integers | None:
        """See `StoredWeights.integers`; None for block types that are no integer grid."""
        place = self.tensors[gguf_name(f"{module}.weight")]
        kind = place.info.dtype.removeprefix("GGUF:")
        if kind not in KINDS:
            return None
        raw = np.empty(place.num_bytes, np.uint8)
        self._file.copy_into(raw, place.offset)
        try:
            blocks = from_gguf_blocks(raw.reshape(-1, place.row_bytes), kind)
        except ShapeError:
            return None  # a Q4_K that llama.cpp rounded; its values are compared instead
        return self._in_canonical_rows(module, _levels(blocks))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _in_canonical_rows(self, module: str, found: Integers) -> Integers:
        is_permuted = self._source.arch.gguf_permuted_qk and module.endswith(("q_proj", "k_proj"))
        if not is_permuted:
            return found
        rows = permuted_rows(len(found.levels_NK), self._source.config.head_dim)
        return Integers(found.levels_NK[rows], found.scales_NG[rows], found.width, found.is_exact)


def _levels(blocks: BlockValues) -> Integers:
    """Code minus zero; where a block has a minimum, its zero is the nearest to -minimum / scale."""
    scales = blocks.scales_NB.astype(np.float32)
    width = blocks.codes_NK.shape[1] // scales.shape[1]
    mins = blocks.mins_NB.astype(np.float32)
    if not mins.any():
        return Integers(blocks.codes_NK, scales, width)
    zeros = np.rint(-mins / np.where(scales == 0, np.float32(1), scales)).astype(np.int16)
    levels = blocks.codes_NK - np.repeat(zeros, width, axis=1)
    is_exact = bool((mins == -scales * zeros.astype(np.float32)).all())
    return Integers(levels, scales, width, is_exact)
