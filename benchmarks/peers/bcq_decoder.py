"""bcquant's native model over the codes of a Q4_0 file: the same rounds as llama_peer.py."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from bcquant import __version__
from bcquant.models.architecture import EMBEDDING
from bcquant.models.source import ModelSource
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.native_weights import modules
from benchmarks.peers.q4_gguf import Q4Source

HEAD_BITS = 8
HEAD_GROUP = 64  # runtime/native_model.py, _end_format


class BcqDecoder:
    """A packed model.

    Args:
        path: a Q4_0 GGUF; its codes are what runs.
        group_size: 32 is the file itself, see `Q4Source`.
    """

    def __init__(self, path: Path, group_size: int, threads: int, num_tokens: int) -> None:
        options = NativeOptions(num_threads=threads, precision="int8", head_bits=HEAD_BITS)
        with Q4Source(path, group_size) as source:
            self._model = NativeModel.load(source, options, num_tokens)
            self.bytes_per_token = bytes_per_token(source)
        self._num_tokens = num_tokens
        self._model.reserve(num_tokens)
        self.version = f"bcquant {__version__}, tier {self._model.tier}"

    def round(self, prompt: list[int], following: list[int]) -> tuple[float, float]:
        """Seconds of the prompt as one batch, and of the tokens after it one by one."""
        self._model.reserve(self._num_tokens)
        start = time.perf_counter()
        self._model.last_logits(prompt)
        middle = time.perf_counter()
        for token in following:
            self._model.last_logits([token])
        stop = time.perf_counter()
        return middle - start, stop - middle

    def choices(self, ids: list[int]) -> list[int]:
        """The likeliest next token after each of `ids`."""
        self._model.reserve(self._num_tokens)
        return [int(np.argmax(self._model.last_logits([token]))) for token in ids]


def bytes_per_token(source: ModelSource) -> int:
    """Bytes of codes and scales that one decoded token reads: all matrices, but of the embedding
    a single row unless it is the head too.
    """
    total = 0
    for module in modules(source):
        name = f"{module}.weight"
        if name == EMBEDDING and not source.config.tie_embeddings:
            continue
        n, k = source.shape(name)
        fmt = source.format_of(module)
        bits, group = (HEAD_BITS, HEAD_GROUP) if fmt is None else (fmt.bits, fmt.group_size)
        total += n * k * bits // 8 + 2 * n * -(-k // group)
    return total
