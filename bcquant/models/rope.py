"""Rotary position embedding: half-split rotation, tables in fp32."""

from __future__ import annotations

import torch

from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import ModelConfig


def rope_table(cfg: ModelConfig, positions_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary angles.

    Args:
        positions_BT: whole numbers, shape (B, T).
    Returns:
        (cos, sin), float32, shape (B, T, D); both halves of D hold the same D/2 angles.
    """
    frequencies = scaled_frequencies(
        base_frequencies(cfg.rope_theta, cfg.head_dim), cfg.rope_scaling
    )
    # float32 frequencies and angles, as the trained models used them
    inverse = torch.tensor(frequencies, dtype=torch.float32, device=positions_BT.device)
    angles = positions_BT.to(torch.float32).unsqueeze(-1) * inverse
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x_BHTD: torch.Tensor, cos_BTD: torch.Tensor, sin_BTD: torch.Tensor) -> torch.Tensor:
    """Turn every pair (i, i + D/2) of each head by its position's angle; fp32 inside.

    Args:
        x_BHTD: queries or keys, shape (B, H, T, D).
        cos_BTD, sin_BTD: from `rope_table`.
    Returns:
        the shape and type of `x_BHTD`.
    """
    x32 = x_BHTD.float()
    first, second = x32.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    cos, sin = cos_BTD.unsqueeze(1), sin_BTD.unsqueeze(1)
    return (x32 * cos + turned * sin).to(x_BHTD.dtype)
