"""A model's final hidden states with one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bcquant.calib.layer_stream import CHUNK_TOKENS, gather_rows
from bcquant.calib.scratch import ScratchArray
from bcquant.calib.smoothing import fake_int8_token
from bcquant.models.architecture import EMBEDDING
from bcquant.models.attention import make_context
from bcquant.models.decoder import block_forward, load_block, plain_linear
from bcquant.models.source import ModelSource


def final_hidden(
    source: ModelSource,
    ids_ST: npt.NDArray[np.int64],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ScratchArray:
    """Input of the final norm for every token, float32 arithmetic.

    W8A8 checkpoints round their activations per token as their kernels do.

    Args:
        ids_ST: sequences of equal length, each on its own.
        folder: where the activations live; the caller removes it.
        progress: called after every layer with (layers done, layers).
    Returns:
        shape (S, T, hidden).
    """
    cfg = source.config
    num, seq_len = ids_ST.shape
    hidden = ScratchArray(folder / "hidden.f32", (num, seq_len, cfg.hidden_size))
    per_chunk = max(1, CHUNK_TOKENS // seq_len)
    used, ids = np.unique(ids_ST, return_inverse=True)
    rows = gather_rows(
        lambda low, high: source.weight(EMBEDDING, (low, high)), used, cfg.vocab_size
    )
    ids_ST_used = torch.from_numpy(ids.reshape(num, seq_len))
    context = make_context(cfg, torch.arange(seq_len).unsqueeze(0), seq_len)
    linear = (
        _int8_linear
        if source.quant and source.quant.format.activation == "int8_token"
        else plain_linear
    )
    for layer in range(cfg.num_layers):
        weights = load_block(source, layer)
        for start in range(0, num, per_chunk):
            stop = min(start + per_chunk, num)
            if layer == 0:
                h = torch.from_numpy(rows)[ids_ST_used[start:stop]]
            else:
                h = hidden.read(start, stop)
            hidden.write(start, block_forward(cfg, layer, weights, h, context, linear=linear))
        progress(layer + 1, cfg.num_layers)
    return hidden


def _int8_linear(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
) -> torch.Tensor:
    return plain_linear(fake_int8_token(x), weight, bias, name)
