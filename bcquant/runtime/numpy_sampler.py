"""The next token from one row of logits, in numpy: the twin of sampler.py for the native engine.

Penalty, temperature, top-k, top-p and min-p are the same, and so are greedy ids. Draws are not:
each takes one float64 u from numpy's PCG64 of the seed, and the token is the first, in the order of
ids, whose cumulated probability exceeds u. So a seed gives the same text on every machine that
gives the same logits, and another text than the torch engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bcquant.errors import ShapeError
from bcquant.runtime.sampling_options import SamplingOptions

F32Array = npt.NDArray[np.float32]


def sample(
    logits_V: F32Array,
    history: Sequence[int],
    options: SamplingOptions,
    generator: np.random.Generator | None = None,
) -> int:
    """Draw the next token id.

    Args:
        logits_V: scores of every token, float32, shape (V,); not written to.
        history: ids seen so far (prompt and generated), for the repetition penalty.
        generator: where randomness comes from; needed unless the options are greedy.
    Raises:
        ShapeError: logits are not one row, or hold NaN or +infinity, or no token is possible.
    """
    best = _checked_argmax(logits_V)
    scores_V = logits_V
    if options.repetition_penalty != 1.0 and history:
        scores_V = penalize(scores_V, history, options.repetition_penalty)
        best = int(scores_V.argmax())
    if options.temperature == 0:
        return best
    assert generator is not None, "a draw needs a generator"
    cumulated_V = np.cumsum(_softmax(filter_scores(scores_V, options)))
    # Scaled by the sum, which rounding leaves beside 1; a token of probability 0 is never drawn.
    point = generator.random() * cumulated_V[-1]
    return min(int(np.searchsorted(cumulated_V, point, side="right")), len(cumulated_V) - 1)


def _checked_argmax(logits_V: F32Array) -> int:
    if logits_V.ndim != 1 or logits_V.size == 0:
        raise ShapeError(f"logits have shape {list(logits_V.shape)}; (V,) with V > 0 is needed")
    best = int(logits_V.argmax())  # the first NaN, if there is one
    if not math.isfinite(logits_V[best]):
        raise ShapeError(
            f"the largest logit is {logits_V[best]}; the model's output is broken: check the "
            "checkpoint, or use --precision exact"
        )
    return best


def penalize(scores_V: F32Array, history: Sequence[int], penalty: float) -> F32Array:
    """Scores with every token of `history` made less likely (CTRL's repetition penalty).

    Args:
        scores_V: shape (V,).
        history: ids; those outside the vocabulary are passed over.
    """
    ids = np.array(sorted({i for i in history if 0 <= i < scores_V.size}), np.int64)
    result_V = scores_V.copy()
    seen, factor = scores_V[ids], np.float32(penalty)
    result_V[ids] = np.where(seen < 0, seen * factor, seen / factor)
    return result_V


def filter_scores(scores_V: F32Array, options: SamplingOptions) -> F32Array:
    """Scores divided by the temperature, with -infinity where a token is ruled out.

    Args:
        scores_V: float32, shape (V,).
        options: temperature above 0.
    """
    result_V = scores_V / np.float32(options.temperature)
    ruled_out = np.float32(-np.inf)
    if 0 < options.top_k < result_V.size:
        last_kept = np.partition(result_V, -options.top_k)[-options.top_k]
        result_V[result_V < last_kept] = ruled_out
    if options.top_p < 1:
        order_V = np.argsort(result_V, kind="stable")
        is_out_V = np.cumsum(_softmax(result_V[order_V])) <= 1 - options.top_p
        is_out_V[-1] = False  # the best token stays, whatever the rounding
        result_V[order_V[is_out_V]] = ruled_out
    if options.min_p > 0:
        probs_V = _softmax(result_V)
        result_V[probs_V < options.min_p * probs_V.max()] = ruled_out
    return result_V


def _softmax(scores_V: F32Array) -> npt.NDArray[np.float64]:
    powers_V = np.exp(scores_V.astype(np.float64) - float(scores_V.max()))
    return np.asarray(powers_V / powers_V.sum())
