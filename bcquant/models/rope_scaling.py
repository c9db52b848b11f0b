"""Rotary frequencies and their stretching, in numpy, for the decoder and for config readers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.spec.model_config import RopeScaling

F64Array = npt.NDArray[np.float64]


def base_frequencies(theta: float, head_dim: int) -> F64Array:
    """theta^(-2i/D) for i = 0 .. D/2-1, radians per position, shape (D/2,)."""
    return np.asarray(1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim))


def scaled_frequencies(frequencies: F64Array, scaling: RopeScaling | None) -> F64Array:
    """Rotary frequencies after scaling: every one divided (linear), or only the slow ones (llama3).

    With llama3, a frequency whose wavelength exceeds original/low is divided by the factor, one
    below original/high stays, and those between are blended linearly in original/wavelength.
    """
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_positions * frequencies / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor
