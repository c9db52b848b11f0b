"""Perplexity from summed log-likelihoods; no torch, so that the native engine's eval can use it."""

from __future__ import annotations

import math


def perplexity(nll: float, tokens: int) -> float:
    """exp(nll / tokens), infinity where that overflows."""
    mean = nll / tokens
    return math.exp(mean) if mean < 700 else math.inf
