"""The next token from one row of logits.

The order and meaning of the steps are those of transformers' logits processors: repetition penalty,
temperature, top-k, top-p, min-p, then one draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bcquant.errors import ShapeError
from bcquant.runtime.sampling_options import SamplingOptions

__all__ = ["SamplingOptions", "filter_scores", "penalize", "sample"]


def sample(
    logits_V: torch.Tensor,
    history: Sequence[int],
    options: SamplingOptions,
    generator: torch.Generator | None = None,
) -> int:
    """Draw the next token id.

    Args:
        logits_V: scores of every token, shape (V,), any float type; not written to.
        history: ids seen so far (prompt and generated), for the repetition penalty.
        generator: where randomness comes from; needed unless the options are greedy.
    Raises:
        ShapeError: logits are not one row, or hold NaN or +infinity, or no token is possible.
    """
    scores_V = _checked(logits_V)
    if options.repetition_penalty != 1.0 and history:
        scores_V = penalize(scores_V, history, options.repetition_penalty)
    if options.temperature == 0:
        return int(scores_V.argmax())
    probs_V = torch.softmax(filter_scores(scores_V, options), dim=-1)
    return int(torch.multinomial(probs_V, 1, generator=generator))


def _checked(logits_V: torch.Tensor) -> torch.Tensor:
    if logits_V.ndim != 1 or logits_V.numel() == 0:
        raise ShapeError(f"logits have shape {list(logits_V.shape)}; (V,) with V > 0 is needed")
    scores_V = logits_V.detach().to("cpu", torch.float32)
    top = float(scores_V.max())  # NaN if any score is NaN
    if not math.isfinite(top):
        raise ShapeError(
            f"the largest logit is {top}; the model's output is broken: check the checkpoint, "
            "or run in float32"
        )
    return scores_V


def penalize(scores_V: torch.Tensor, history: Sequence[int], penalty: float) -> torch.Tensor:
    """Scores with every token of `history` made less likely (CTRL's repetition penalty).

    Args:
        scores_V: shape (V,).
        history: ids; those outside the vocabulary are passed over.
    """
    vocab_size = scores_V.numel()
    ids = torch.tensor(sorted({i for i in history if 0 <= i < vocab_size}), dtype=torch.int64)
    seen = scores_V[ids]
    result_V = scores_V.clone()
    result_V[ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
    return result_V


def filter_scores(scores_V: torch.Tensor, options: SamplingOptions) -> torch.Tensor:
    """Scores divided by the temperature, with -infinity where a token is ruled out.

    Args:
        scores_V: float32, shape (V,).
        options: temperature above 0.
    """
    result_V = scores_V / options.temperature
    minus_infinity = float("-inf")
    if 0 < options.top_k < result_V.numel():
        last_kept = torch.topk(result_V, options.top_k).values[-1]
        result_V = result_V.masked_fill(result_V < last_kept, minus_infinity)
    if options.top_p < 1:
        ascending_V, order_V = torch.sort(result_V)
        tail_V = ascending_V.softmax(dim=-1).cumsum(dim=-1)
        is_out_V = tail_V <= 1 - options.top_p
        is_out_V[-1] = False  # the best token stays, whatever the rounding
        result_V = result_V.masked_fill(
            torch.zeros_like(is_out_V).scatter(0, order_V, is_out_V), minus_infinity
        )
    if options.min_p > 0:
        probs_V = result_V.softmax(dim=-1)
        result_V = result_V.masked_fill(probs_V < options.min_p * probs_V.max(), minus_infinity)
    return result_V
