"""Perplexity of a package by the runtime that runs it in apps, with that runtime's own figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bcquant.calib.dataset import I64Array
from bcquant.errors import ConfigError
from bcquant.eval.perplexity import PerplexityResult, Scorer, score_windows
from bcquant.kernels.runtime_native import Model, RuntimeOptions, Session, open_package
from bcquant.runtime.generation import EngineFacts

_CHUNK_TOKENS = 128  # between two looks at Ctrl-C


def package_perplexity(
    path: str | Path,
    text: str,
    seq_len: int = 1024,
    stride: int | None = None,
    max_tokens: int | None = None,
    options: RuntimeOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[PerplexityResult, EngineFacts]:
    """`perplexity.measure_perplexity` of a package, by its own tokenizer and C++ runtime.

    Args:
        progress: called after every window with (windows done, windows).
    Raises:
        CheckpointError: it is missing, damaged or no package, or has no tokenizer.
        ConfigError: as `measure_perplexity`, or windows longer than the model's context.
        KernelError: an option is out of range, or the tier is not of this CPU.
    """
    start_s = time.monotonic()
    options = options or RuntimeOptions()
    with open_package(path, checks_digests=False) as package, package.model(options) as model:
        most = model.info.max_positions
        if seq_len > most:
            raise ConfigError(f"--seq-len is {seq_len}; {path} has {most} positions")
        with package.tokenizer() as tokenizer:
            ids = tokenizer.encode(text, add_special=False, parse_special=False)
        score = package_scorer(model, progress)
        result = score_windows(ids, seq_len, stride, max_tokens, score, start_s)
        activations = options.activations or model.info.activations
        return result, EngineFacts("native", model.tier, options.num_threads, activations)


def package_scorer(
    model: Model, progress: Callable[[int, int], None] = lambda done, total: None
) -> Scorer:
    """A `perplexity.Scorer` over a package's model; every window is a session emptied before."""

    def score(windows_ST: I64Array, firsts: list[int]) -> float:
        nll = 0.0
        with model.session(windows_ST.shape[1]) as session:
            for i, (ids_T, first) in enumerate(zip(windows_ST, firsts, strict=True)):
                session.truncate(0)
                nll += _window_nll(session, ids_T, first)
                progress(i + 1, len(windows_ST))
        return nll

    return score


def _window_nll(session: Session, ids_T: I64Array, first: int) -> float:
    """-log p of tokens `first` .. end, each given those before it."""
    context = ids_T[: first - 1]
    for start in range(0, len(context), _CHUNK_TOKENS):
        session.append(context[start : start + _CHUNK_TOKENS])
    nll = 0.0
    # A call scores all but its first token: the next one begins with the token that ends this one,
    # which is taken back before.
    for start in range(first - 1, len(ids_T) - 1, _CHUNK_TOKENS):
        session.truncate(start)
        nll += session.score(ids_T[start : start + _CHUNK_TOKENS + 1])
    return nll
