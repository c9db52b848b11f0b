"""Input scales of a stage: outliers of int8 activations move into the weights.

    x W^T = (x / f) (W f)^T,  f = 2^e column by column

What made x (a norm, or the Linear before) takes 1 / f over, so no runtime does anything new.
Powers of two make that exact: the float model computes the same bits, and codes that were sealed
before keep their integers, since only their scales move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_EXPONENT = 8  # float16 scales of 2^-6 keep all their bits down to 2^-14


@dataclass(frozen=True)
class InputProbe:
    """What the choice of a stage's input scales looks at.

    Attributes:
        weights: full module name -> float32 weight (N, K).
        producer: full name of the tensor (norm) or module (v_proj, up_proj) that makes the input.
        producer_K: row or entry of the producer that makes each input column; int64, shape (K,).
        peaks_K: largest absolute input of each column on the train tokens.
        held_MK: the quantized stream's input on held-out tokens, not rounded.
        stored: the producer's float vectors as the output stores them (norm weight, bias).
    """

    weights: dict[str, torch.Tensor]
    producer: str
    producer_K: torch.Tensor
    peaks_K: torch.Tensor
    held_MK: torch.Tensor
    stored: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class InputScale:
    """Chosen exponents. Attributes: exponents_K, int8, shape (K,); strength; losses by strength
    (relative output error of rounding inputs and weights to int8; 0 = inputs as they are)."""

    exponents_K: torch.Tensor
    strength: float
    losses: dict[float, float]


def fake_int8_token(x: torch.Tensor) -> torch.Tensor:
    """Round activations as a W8A8 kernel does: int8, symmetric, one scale per token (last dim)."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127.0
    return (x / scale).round_().clamp_(-128, 127).mul_(scale)


def choose_input_scale(
    probe: InputProbe, strengths: Sequence[float], range_2K: torch.Tensor
) -> InputScale:
    """The strength whose int8 output is nearest to the float output on held-out tokens.

    f = peak(x)^a / peak(w)^(1 - a) for each column, a the strength, to the nearest power of two.

    Args:
        strengths: tried besides 0, each in 0 .. 1.
        range_2K: smallest and largest exponent that each column's producer can take over
            exactly, shape (2, K); see `exact_range`.
    Source: SmoothQuant (Xiao et al. 2022), equation 4, restricted to powers of two.
    """
    num_columns = len(probe.peaks_K)
    none = torch.zeros(num_columns, dtype=torch.int8)
    wanted = {name: probe.held_MK @ w.T for name, w in probe.weights.items()}
    losses = {0.0: _loss(probe, wanted, none)}
    best = InputScale(none, 0.0, losses)
    for strength in strengths:
        exponents = _exponents(probe, strength, range_2K)
        losses[strength] = _loss(probe, wanted, exponents)
        if losses[strength] < losses[best.strength]:
            best = InputScale(exponents, strength, losses)
    return best


def _exponents(probe: InputProbe, strength: float, range_2K: torch.Tensor) -> torch.Tensor:
    weight_peaks_K = torch.stack([w.abs().amax(0) for w in probe.weights.values()]).amax(0)
    is_live_K = (probe.peaks_K > 0) & (weight_peaks_K > 0)
    log_K = strength * probe.peaks_K.clamp_min(1e-30).log2()
    log_K -= (1 - strength) * weight_peaks_K.clamp_min(1e-30).log2()
    log_K = torch.where(is_live_K, log_K, 0.0)
    # Columns of one producer row share its exponent; the mean of the live ones is 0.
    num_rows = int(probe.producer_K.max()) + 1
    sums, counts = torch.zeros(num_rows), torch.zeros(num_rows)
    sums.index_add_(0, probe.producer_K, log_K)
    counts.index_add_(0, probe.producer_K, is_live_K.to(torch.float32))
    shared_K = (sums / counts.clamp_min(1))[probe.producer_K]
    if bool(is_live_K.any()):
        shared_K -= shared_K[is_live_K].mean()
    shared_K[counts[probe.producer_K] == 0] = 0
    low_K, high_K = range_2K.to(torch.float32)
    return torch.minimum(torch.maximum(shared_K.round(), low_K), high_K).to(torch.int8)


def _loss(probe: InputProbe, wanted: dict[str, torch.Tensor], exponents_K: torch.Tensor) -> float:
    """Sum over the modules of ||X W^T - int8(X / f) int8(W f)^T||^2 / ||X W^T||^2."""
    factors_K = exponents_K.to(torch.float32).exp2()
    seen_MK = fake_int8_token(probe.held_MK / factors_K)
    total = 0.0
    for name, weight in probe.weights.items():
        error = seen_MK @ fake_int8_token(weight * factors_K).T - wanted[name]
        scale = max(float(wanted[name].square().sum(dtype=torch.float64)), 1e-30)
        total += float(error.square_().sum(dtype=torch.float64)) / scale
    return total


def exact_range(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Smallest and largest e with values * 2^-e exact in `dtype` and finite, for each row.

    Args:
        values: float32 that `dtype` holds, shape (rows,) or (rows, G).
    Returns:
        int64, shape (2, rows); e = 0 is in every range, which ends at +-MAX_EXPONENT.
    """
    table = values.reshape(len(values), -1)
    ends = torch.zeros(2, len(values), dtype=torch.int64)
    for end, sign in ((0, -1), (1, 1)):
        is_exact = torch.ones(len(values), dtype=torch.bool)
        for size in range(1, MAX_EXPONENT + 1):
            e = sign * size
            moved = (table * 2.0**-e).to(dtype).to(torch.float32) * 2.0**e
            is_exact &= (moved == table).all(-1)
            ends[end, is_exact] = e
    return ends
