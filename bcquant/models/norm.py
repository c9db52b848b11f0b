"""RMSNorm with its statistics in fp32."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    The mean and the division are computed in fp32, the result is cast to the type of `x` and only
    then multiplied by the weight, which is the order of LLaMA and Baichuan.

    Args:
        x: float, shape (..., D).
        weight: shape (D,), the type of `x`.
    Returns:
        the shape and type of `x`.
    """
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)
