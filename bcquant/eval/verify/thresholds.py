"""What counts as the same: one table, by the arithmetic that the export asks its runtime for.

docs/formats/certificate.md prints the same numbers and says how they were found.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Limits of one kind of arithmetic; logit errors are in units of the logits' own spread.

    Attributes:
        kind: a key of `KINDS`.
        means: one line for people.
        rounds_weights: float weights may be the source's rounded to the type they are stored in.
        max_error: largest |export - source| of a logit over the spread of the source's logits.
        kl_mean, kl_999: divergence of the next-token distributions, nats.
        top1: smallest share of positions with the same most likely token.
        perplexity: largest relative change, either way.
        tie: largest gap between the source's best logit and the chosen one that is a near tie.
        hidden_error: relative error of the residual stream after a block that is still noise.
    """

    kind: str
    means: str
    rounds_weights: bool
    max_error: float
    kl_mean: float
    kl_999: float
    top1: float
    perplexity: float
    tie: float
    hidden_error: float


# Relative error of the first block's output of a W8A8 model; a step of absmax / 127.5 gives 4e-3.
ROUNDING_ERROR = 1e-3

KINDS = {
    found.kind: found
    for found in (
        Thresholds(
            "float32", "float32 activations",
            rounds_weights=False, max_error=1e-3, kl_mean=1e-8, kl_999=1e-7, top1=0.998,
            perplexity=1e-5, tie=1e-3, hidden_error=1e-5,
        ),
        Thresholds(
            "float16", "float16 activations",
            rounds_weights=True, max_error=0.3, kl_mean=2e-4, kl_999=2e-3, top1=0.97,
            perplexity=3e-3, tie=0.02, hidden_error=6e-3,
        ),
        Thresholds(
            "bfloat16", "bfloat16 activations",
            rounds_weights=True, max_error=0.5, kl_mean=4e-3, kl_999=4e-2, top1=0.95,
            perplexity=5e-3, tie=0.1, hidden_error=5e-2,
        ),
        Thresholds(
            "int8_token", "activations that the checkpoint itself rounds to int8 (W8A8)",
            rounds_weights=False, max_error=6.0, kl_mean=0.1, kl_999=1.0, top1=0.75,
            perplexity=0.1, tie=1.0, hidden_error=0.3,
        ),
        Thresholds(
            "int8", "activations that the runtime rounds to int8 in blocks",
            rounds_weights=False, max_error=3.0, kl_mean=3e-2, kl_999=0.4, top1=0.85,
            perplexity=5e-2, tie=0.5, hidden_error=0.12,
        ),
    )
}  # fmt: skip
