"""Strided perplexity of any checkpoint that bcquant reads, one block in memory at a time.

Torch in float32 is the judge (eval/torch_perplexity.py, imported only where it computes);
eval/native_perplexity.py puts the native engine in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bcquant.calib.dataset import I64Array, builtin_text, read_text
from bcquant.calib.likelihood import perplexity
from bcquant.errors import ConfigError
from bcquant.models.source import ModelSource
from bcquant.runtime.tokenizer import open_tokenizer

# Windows of equal length (S, T) and each one's first scored position -> their summed -log p, nats.
Scorer = Callable[[I64Array, list[int]], float]


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity and how it was taken.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per scored token.
        nll: that mean, in nats.
        num_tokens: tokens scored.
        tokens_per_s: scored tokens over the seconds of the whole measurement, reading included.
    """

    perplexity: float
    nll: float
    num_tokens: int
    seq_len: int
    stride: int
    seconds: float
    tokens_per_s: float


def evaluation_text(text: str) -> str:
    """The text behind `--text`: "builtin" (the evaluation part) or a file or folder."""
    return builtin_text("evaluation") if text == "builtin" else read_text(Path(text))


def measure_perplexity(
    source: ModelSource,
    text: str,
    seq_len: int = 1024,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    score: Scorer | None = None,
) -> PerplexityResult:
    """Perplexity of a text in windows of `seq_len` tokens that start every `stride` tokens.

    A token is scored once, in the first window that holds it, with at least seq_len - stride
    tokens before it once the text allows that. The first token of a window that overlaps no
    other has nothing before it and is not scored. No special tokens are added.

    Args:
        stride: 1 to seq_len; None = seq_len (windows do not overlap).
        max_tokens: use only this many tokens from the start of the text.
        progress: called by the torch scorer after every layer with (layers done, layers).
        score: what computes; None = torch in float32, one block in memory at a time.
    Raises:
        ConfigError: fewer than two tokens of text, or a stride or length out of range.
    """
    start_s = time.monotonic()
    _window_stride(seq_len, stride, max_tokens)
    tokenizer = open_tokenizer(source.path)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    if score is None:
        from bcquant.eval.torch_perplexity import torch_scorer

        score = torch_scorer(source, progress)
    return score_windows(ids, seq_len, stride, max_tokens, score, start_s)


def score_windows(
    ids: Sequence[int],
    seq_len: int,
    stride: int | None,
    max_tokens: int | None,
    score: Scorer,
    start_s: float,
) -> PerplexityResult:
    """`measure_perplexity` of a text's ids by any scorer.

    Args:
        start_s: on time.monotonic(), when the measurement began.
    Raises:
        ConfigError: as `measure_perplexity`.
    """
    step = _window_stride(seq_len, stride, max_tokens)
    ids_T = np.asarray(ids, np.int64)[:max_tokens]
    if len(ids_T) < 2:
        raise ConfigError(f"the text has {len(ids_T)} tokens; perplexity needs at least 2")
    nll, scored = 0.0, 0
    for windows, firsts in _batches(ids_T, seq_len, step):
        nll += score(windows, firsts)
        scored += sum(windows.shape[1] - first for first in firsts)
    seconds = time.monotonic() - start_s
    return PerplexityResult(
        perplexity(nll, scored), nll / scored, scored, seq_len, step, seconds, scored / seconds
    )


def _window_stride(seq_len: int, stride: int | None, max_tokens: int | None) -> int:
    """Tokens between windows; ConfigError: a number is out of range."""
    step = seq_len if stride is None else stride
    if seq_len < 2:
        raise ConfigError(f"--seq-len is {seq_len}; at least 2 is needed")
    if not 1 <= step <= seq_len:
        raise ConfigError(f"--stride is {step}; 1 to --seq-len ({seq_len}) is needed")
    if max_tokens is not None and max_tokens < 2:
        raise ConfigError(f"--max-tokens is {max_tokens}; at least 2 is needed")
    return step


def _batches(ids: I64Array, seq_len: int, stride: int) -> list[tuple[I64Array, list[int]]]:
    """Windows of equal length in arrays (S, T), with the first scored position of each.

    The last window may be shorter, and is then an array of its own.
    """
    full: list[I64Array] = []
    firsts: list[int] = []
    tail: list[tuple[I64Array, list[int]]] = []
    begin, scored_to = 0, 1
    while scored_to < len(ids):
        end = min(begin + seq_len, len(ids))
        window, first = ids[begin:end], max(1, scored_to - begin)
        if len(window) == seq_len:
            full.append(window)
            firsts.append(first)
        elif len(window) > first:
            tail.append((window[None, :], [first]))
        scored_to = end
        begin += stride
    return ([(np.stack(full), firsts)] if full else []) + tail
