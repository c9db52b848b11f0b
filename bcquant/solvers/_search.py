"""Scales and zeros of a group grid: by the range's extremes, or by weighted error."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bcquant.kernels import solver_native as native
from bcquant.spec.quant_format import QuantFormat

SMALLEST_SCALE = 2.0**-24  # the smallest positive float16


def range_grid(weight_NK: torch.Tensor, fmt: QuantFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros that span each group's range (what RTN and textbook GPTQ use).

    Args:
        weight_NK: float32, shape (N, K).
    Returns:
        scales (float16 values in float32) and zeros, each (N, G). Asymmetric zeros are >= 1, so
        that GPTQ v1, which stores zero-1, can hold them; a group without negative values gets a
        negative scale and zero max_code instead of zero 0.
    """
    scales, zeros = [], []
    for _, group_NGg in _full_and_tail(weight_NK, fmt):
        low = group_NGg.amin(-1).clamp_max(0.0)
        high = group_NGg.amax(-1).clamp_min(0.0)
        if fmt.symmetric:
            scale = _float16(2 * torch.maximum(-low, high) / fmt.max_code)
            zero = torch.full_like(scale, fmt.symmetric_zero)
        else:
            scale = _float16((high - low) / fmt.max_code)
            zero = torch.where(high > low, (-low / scale).round_(), 1.0)
            scale, zero = _storable(scale, zero, fmt)
        scales.append(scale)
        zeros.append(zero)
    return torch.cat(scales, 1), torch.cat(zeros, 1)


def search_grid(
    weight_NK: torch.Tensor, weights_K: torch.Tensor, fmt: QuantFormat, num_ratios: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros that minimise sum_k weights[k] (W[n,k] - s (q - z))^2 in each group.

    Candidate scales are ratios of the range; for every candidate the codes are fixed by rounding
    and the best scale for those codes is taken in closed form, so a coarse list of ratios finds
    what a fine one would. Symmetric grids try both signs of the scale (the range -2^(b-1) ..
    2^(b-1)-1 is lopsided); asymmetric ones try the neighbours of each zero.

    Args:
        weight_NK: float32, shape (N, K).
        weights_K: float32 > 0, shape (K,).
    Returns:
        as `range_grid`; never a larger weighted error than it (the range is a candidate).
    Source: QUANT.md section 3 (B); the loop is csrc/solver/grid_search.cpp.
    """
    scales, zeros = native.search_grid(
        weight_NK.contiguous().numpy(),
        weights_K.contiguous().numpy(),
        fmt.group_width(weight_NK.shape[1]),
        fmt.max_code,
        fmt.symmetric,
        num_ratios,
        torch.get_num_threads(),
    )
    return torch.from_numpy(scales), torch.from_numpy(zeros)


def _full_and_tail(
    weight_NK: torch.Tensor, fmt: QuantFormat
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The full groups as (N, G, g), then the shorter last group, if any, as (N, 1, rest)."""
    n, k = weight_NK.shape
    width = fmt.group_width(k)
    full = k // width * width
    yield slice(0, full), weight_NK[:, :full].reshape(n, -1, width)
    if full < k:
        yield slice(full, k), weight_NK[:, full:].reshape(n, 1, k - full)


def _float16(scale: torch.Tensor) -> torch.Tensor:
    """Round to float16 values, not to zero or infinity; a zero scale (empty group) becomes 1."""
    rounded = scale.to(torch.float16).to(torch.float32).clamp_(-65504.0, 65504.0)
    tiny = torch.where(scale < 0, -SMALLEST_SCALE, SMALLEST_SCALE)
    rounded = torch.where(rounded == 0, tiny, rounded)
    return torch.where(scale == 0, 1.0, rounded)


def _storable(
    scale: torch.Tensor, zero: torch.Tensor, fmt: QuantFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid with a zero of 1 .. max_code. Zero 0 (a group without negative values) is counted
    from the other end: s (q - 0) = -s ((max_code - q) - max_code)."""
    flip = zero < 1
    top = float(fmt.max_code)
    return torch.where(flip, -scale, scale), torch.where(flip, top, zero.clamp_max(top))
