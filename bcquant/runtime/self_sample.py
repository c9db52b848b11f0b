"""Calibration text drawn from the model itself, for models whose training text is unknown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bcquant.models.decoder import Decoder
from bcquant.models.source import ModelSource
from bcquant.runtime.kv_cache import KvCache

BATCH = 16


def sample_sequences(
    source: ModelSource, num_sequences: int, seq_len: int, seed: int, bos_id: int | None
) -> npt.NDArray[np.int64]:
    """Draw sequences at temperature 1 from the whole distribution.

    A sequence starts with `bos_id`, or with a token drawn uniformly where there is none;
    end-of-text does not end it. The whole model is resident while this runs.

    Returns:
        ids, shape (num_sequences, seq_len); the same seed gives the same ids.
    Source: Liu et al. 2023, LLM-QAT, "data-free" calibration.
    """
    model = Decoder.load(source)
    generator = torch.Generator().manual_seed(seed)
    vocab_size = source.config.vocab_size
    parts = []
    for start in range(0, num_sequences, BATCH):
        batch = min(BATCH, num_sequences - start)
        if bos_id is None:
            ids = torch.randint(vocab_size, (batch, 1), generator=generator)
        else:
            ids = torch.full((batch, 1), bos_id)
        cache = KvCache(source.config, batch, seq_len)
        columns = [ids]
        while len(columns) < seq_len:
            logits = model(columns[-1], cache=cache)[:, -1].to(torch.float32)
            columns.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        parts.append(torch.cat(columns, 1))
    return torch.cat(parts).numpy()
