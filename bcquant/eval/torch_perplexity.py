"""Torch in float32 as what scores perplexity windows: the judge of every other engine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bcquant.calib.dataset import I64Array
from bcquant.calib.forward import final_hidden
from bcquant.calib.measure import Head, nll_sum
from bcquant.calib.smoothing import fake_int8_token
from bcquant.eval.perplexity import Scorer
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD
from bcquant.models.precision import fast_float32
from bcquant.models.source import ModelSource


def torch_scorer(source: ModelSource, progress: Callable[[int, int], None]) -> Scorer:
    """A `perplexity.Scorer` that computes in float32, one block in memory at a time.

    Args:
        progress: called after every layer with (layers done, layers).
    """
    head, seen = load_head(source), head_input(source)

    def score(windows: I64Array, firsts: list[int]) -> float:
        nll = 0.0
        with (
            tempfile.TemporaryDirectory(prefix="bcquant-") as folder,
            fast_float32(),
            torch.inference_mode(),
        ):
            hidden = final_hidden(source, windows, Path(folder), progress)
            for i, first in enumerate(firsts):
                targets = torch.from_numpy(windows[i, first:])
                nll += nll_sum(head, hidden.read(i, i + 1)[0, first - 1 : -1], targets, seen)
            hidden.close()
        return nll

    return score


def load_head(source: ModelSource) -> Head:
    """Final norm and lm_head in float32."""
    name = HEAD if source.has(HEAD) else EMBEDDING
    return Head(
        torch.from_numpy(source.weight(FINAL_NORM)),
        torch.from_numpy(source.weight(name)),
        source.config.rms_norm_eps,
    )


def head_input(source: ModelSource) -> Callable[[torch.Tensor], torch.Tensor]:
    """What lm_head sees of its input: a W8A8 one gets it rounded to int8 per token."""
    is_quantized = source.has(HEAD) and source.stored_dtype(HEAD) == "quantized"
    if is_quantized and source.quant and source.quant.format.activation == "int8_token":
        return fake_int8_token
    return lambda x: x
