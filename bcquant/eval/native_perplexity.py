"""The native engine as what scores perplexity windows: the kernels' own figure, not the judge's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bcquant.calib.dataset import I64Array
from bcquant.runtime.native_model import CHUNK_TOKENS, NativeModel

_LOGITS_BYTES = 64 << 20  # that exist at once


def native_scorer(
    model: NativeModel, progress: Callable[[int, int], None] = lambda done, total: None
) -> Callable[[I64Array, list[int]], float]:
    """A `perplexity.Scorer` over a native model.

    Args:
        progress: called after every window with (windows done, windows).
    """
    vocab = model.decoder.vocab_size
    rows = min(CHUNK_TOKENS, max(1, _LOGITS_BYTES // (4 * vocab)))
    logits_RV = np.empty((rows, vocab), np.float32)

    def score(windows_ST: I64Array, firsts: list[int]) -> float:
        nll = 0.0
        for i, (ids_T, first) in enumerate(zip(windows_ST, firsts, strict=True)):
            model.reserve(len(ids_T))
            nll += _window_nll(model, ids_T, first, logits_RV)
            progress(i + 1, len(windows_ST))
        return nll

    return score


def _window_nll(
    model: NativeModel, ids_T: I64Array, first: int, logits_RV: npt.NDArray[np.float32]
) -> float:
    """-log p of tokens `first` .. end, each given those before it."""
    total, rows = 0.0, len(logits_RV)
    inputs = ids_T[:-1]  # nothing is to be said about what follows the last
    for start in range(0, len(inputs), rows):
        part = inputs[start : start + rows]
        # The token at position t is scored by the logits of t - 1.
        wanted = min(len(part), max(0, start + len(part) - (first - 1)))
        logits = logits_RV[:wanted] if wanted else None
        model.forward(part, logits)
        if logits is not None:
            stop = start + len(part) + 1
            total += nll_sum(logits, ids_T[stop - wanted : stop])
    return total


def nll_sum(logits_MV: npt.NDArray[np.float32], targets_M: I64Array) -> float:
    """Sum of -log softmax(logits)[target], sums in float64; the logits are written over."""
    picked = logits_MV[np.arange(len(targets_M)), targets_M].astype(np.float64)
    top_M1 = logits_MV.max(axis=1, keepdims=True)
    np.subtract(logits_MV, top_M1, out=logits_MV)
    np.exp(logits_MV, out=logits_MV)
    log_sum = np.log(logits_MV.sum(axis=1, dtype=np.float64)) + top_M1[:, 0]
    return float((log_sum - picked).sum())
