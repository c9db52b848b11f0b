"""Weights and correlated inputs of one Linear, for tests of solvers and of the guard."""

from __future__ import annotations

import torch


def random_weight(n: int, k: int, seed: int = 0) -> torch.Tensor:
    """float32 (N, K) of a trained layer's size, a few columns heavier than the rest."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator) * 0.05
    weight[:, torch.randperm(k, generator=generator)[: k // 8]] *= 3
    return weight


def random_inputs(m: int, k: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    """float32 (M, K): correlated columns of unequal size, as activations are.

    Args:
        spread: standard deviation of the log of the columns' sizes.
    """
    generator = torch.Generator().manual_seed(1000 + seed)
    mix = torch.eye(k) + torch.randn(k, k, generator=generator) * (2.0 / k**0.5)
    sizes = (torch.randn(k, generator=generator) * spread).exp()
    noise = torch.randn(m, k, generator=torch.Generator().manual_seed(2000 + seed))
    return (noise @ mix) * sizes


def hessian_of(inputs_MK: torch.Tensor) -> torch.Tensor:
    """X^T X / M, float32, exactly symmetric."""
    product = inputs_MK.double().T @ inputs_MK.double() / len(inputs_MK)
    return ((product + product.T) / 2).float()


def output_loss(inputs_MK: torch.Tensor, wanted_NK: torch.Tensor, found_NK: torch.Tensor) -> float:
    """||X (W - Q)^T||^2 / ||X W^T||^2 in float64."""
    x, wanted = inputs_MK.double(), wanted_NK.double()
    error = x @ (found_NK.double() - wanted).T
    return float(error.square().sum() / (x @ wanted.T).square().sum())
