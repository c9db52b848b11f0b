"""Scales and zeros of a group grid: by the range's extremes, or by weighted error."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bcquant.spec.quant_format import QuantFormat

# Elements per pass of the search: four such float32 buffers stay in a 1 MB L2 cache.
CHUNK_ELEMENTS = 1 << 16
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16


def range_grid(weight_NK: torch.Tensor, fmt: QuantFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros that span each group's range (what RTN and textbook GPTQ use).

    Args:
        weight_NK: float32, shape (N, K).
    Returns:
        scales (float16 values in float32) and zeros, each (N, G). Asymmetric zeros are >= 1, so
        that GPTQ v1, which stores zero-1, can hold them.
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
            zero = (-low / scale).round_().clamp_(1, fmt.max_code)
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
    Source: QUANT.md section 3 (B).
    """
    start_scales, start_zeros = range_grid(weight_NK, fmt)
    rows_per_chunk = max(1, CHUNK_ELEMENTS // weight_NK.shape[1])
    scales = torch.empty_like(start_scales)
    zeros = torch.empty_like(start_zeros)
    for n in range(0, weight_NK.shape[0], rows_per_chunk):
        rows = slice(n, n + rows_per_chunk)
        for columns, group_NGg in _full_and_tail(weight_NK[rows], fmt):
            width = group_NGg.shape[-1]
            groups = slice(columns.start // fmt.group_width(weight_NK.shape[1]), None)
            groups = slice(groups.start, groups.start + group_NGg.shape[1])
            weights_Gg = weights_K[columns].reshape(-1, width)
            scales[rows, groups], zeros[rows, groups] = _search_chunk(
                group_NGg,
                weights_Gg,
                start_scales[rows, groups],
                start_zeros[rows, groups],
                fmt,
                num_ratios,
            )
    return scales, zeros


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


def _search_chunk(
    x: torch.Tensor,
    weights_Gg: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    fmt: QuantFormat,
    num_ratios: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best (scale, zero), each (n, G), for groups x (n, G, g)."""
    weighted_x = x * weights_Gg
    best = _Best(x, weighted_x, weights_Gg, fmt)
    best.offer(scale, zero, refit=False)
    ratios = torch.linspace(0.5, 1.1, num_ratios).tolist()
    if fmt.symmetric:
        # |extreme| / 2^(b-1): the lopsided side of the grid lands on the extreme.
        full = x.abs().amax(-1) / fmt.symmetric_zero
        for ratio in ratios:
            best.offer(full * ratio, zero, refit=True)
            best.offer(full * -ratio, zero, refit=True)
    else:
        low = x.amin(-1).clamp_max(0.0)
        span = (x.amax(-1).clamp_min(0.0) - low) / fmt.max_code
        for ratio in ratios:
            middle = (-low / span.clamp_min(SMALLEST_SCALE)).add_(
                (1 - ratio) * -fmt.max_code / 2 / ratio
            )
            for step in (-1.0, 0.0, 1.0):
                best.offer(span * ratio, (middle + step).round_(), refit=True)
    best.offer(best.scale, best.zero, refit=True)
    return best.scale, best.zero


class _Best:
    """The best grid so far for each group; owns the buffers of the search."""

    def __init__(
        self, x: torch.Tensor, weighted_x: torch.Tensor, weights_Gg: torch.Tensor, fmt: QuantFormat
    ) -> None:
        self.x, self.weighted_x, self.weights = x, weighted_x, weights_Gg
        self.fmt = fmt
        self.buffer = torch.empty_like(x)
        self.scale = torch.empty(x.shape[:-1])
        self.zero = torch.empty(x.shape[:-1])
        self.gain = torch.full(x.shape[:-1], -torch.inf)

    def offer(self, scale: torch.Tensor, zero: torch.Tensor, refit: bool) -> None:
        """Try a grid. The error is sum w x^2 - gain with gain = 2 s a - s^2 b, where
        a = sum w x u, b = sum w u^2 and u = q - z; the best scale for the codes is a / b."""
        zero = zero.clamp(1, self.fmt.max_code)
        scale = _float16(scale)
        u = torch.div(self.x, scale.unsqueeze(-1), out=self.buffer).round_()
        low, high = -zero.unsqueeze(-1), self.fmt.max_code - zero.unsqueeze(-1)
        u = torch.clamp(u, low, high, out=u)
        a = torch.einsum("ngk,ngk->ng", self.weighted_x, u)
        b = torch.einsum("ngk,gk->ng", u.square_(), self.weights)
        if refit:
            scale = _float16(torch.where(b > 0, a / b, scale))
        gain = 2 * scale * a - scale.square() * b
        better = gain > self.gain
        self.gain = torch.where(better, gain, self.gain)
        self.scale = torch.where(better, scale, self.scale)
        self.zero = torch.where(better, zero, self.zero)
