"""ALiBi: a penalty that grows with distance, with one slope per head."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def alibi_slopes(num_heads: int) -> list[float]:
    """Slope of every head, each above 0.

    For a power of two n: 2^(-8i/n), i = 1 .. n. Otherwise the slopes of the largest power of two
    below come first, then every second slope of twice that power (40 heads = 32 + 8 of 64).

    Source: Press et al., "Train Short, Test Long", and the code published with it.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    if power < num_heads:
        finer = [2.0 ** (-8.0 * i / (2 * power)) for i in range(1, 2 * power + 1)]
        slopes += finer[0::2][: num_heads - power]
    return slopes


def alibi_bias(
    num_heads: int, query_positions_BT: torch.Tensor, key_positions_BS: torch.Tensor
) -> torch.Tensor:
    """slope_h * (key position - query position): 0 at the query itself, negative before it.

    Args:
        query_positions_BT, key_positions_BS: whole numbers, shapes (B, T) and (B, S).
    Returns:
        float32, shape (B, H, T, S); what lies after the query is not masked here.
    """
    import torch

    slopes = torch.tensor(alibi_slopes(num_heads), device=query_positions_BT.device)
    distance = key_positions_BS.unsqueeze(-2) - query_positions_BT.unsqueeze(-1)
    return slopes.view(1, -1, 1, 1) * distance.unsqueeze(1).to(torch.float32)
