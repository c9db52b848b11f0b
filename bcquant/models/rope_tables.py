"""Rotary cosines and sines of every position, in numpy, for whoever runs without torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import ModelConfig

F32Array = npt.NDArray[np.float32]


def rope_tables(cfg: ModelConfig, num_positions: int) -> tuple[F32Array, F32Array]:
    """Cosines and sines of positions 0 .. P - 1, float32, shape (P, D/2).

    Frequencies and angles are float32, as in models/rope.py; cosines of these angles are rounded
    correctly, so they differ from torch's by at most its own last bit.
    """
    frequencies = scaled_frequencies(
        base_frequencies(cfg.rope_theta, cfg.head_dim), cfg.rope_scaling
    ).astype(np.float32)
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)
