"""llama.cpp through llama-cpp-python's C bindings: token ids, logits of every position, greedy ids.

Silent, on one thread, with float32 caches and no flash attention, so that what differs from our
float32 decoder is the file's types alone.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

F32Array = npt.NDArray[np.float32]

_F32 = 0  # ggml's number
_NO_FLASH_ATTENTION = 0


class LlamaJudge:
    """One GGUF file in llama.cpp; close it or use it as a context manager.

    Attributes:
        vocab_size: ids of the file's vocabulary.
    """

    def __init__(self, path: Path, vocab_only: bool = False, num_positions: int = 512) -> None:
        lib = self.lib = _library()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = 0
        params.check_tensors = True
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp does not load {path}: {''.join(_MESSAGES[-12:])}"
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self._context = None if vocab_only else self._new_context(num_positions)

    def _new_context(self, num_positions: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = num_positions
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = _F32
        params.flash_attn_type = _NO_FLASH_ATTENTION
        params.no_perf = True
        context = self.lib.llama_init_from_model(self._model, params)
        assert context, f"llama.cpp makes no context: {''.join(_MESSAGES[-12:])}"
        return context

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""
        data = text.encode()
        room = len(data) + 8
        ids = (self.lib.llama_token * room)()
        count = self.lib.llama_tokenize(
            self._vocab, data, len(data), ids, room, add_special, parse_special
        )
        assert count >= 0, f"{text!r} has more than {room} tokens"
        return list(ids[:count])

    def piece(self, token_id: int) -> bytes:
        """Bytes of a token, special ones spelled out."""
        buffer = ctypes.create_string_buffer(256)
        count = self.lib.llama_token_to_piece(self._vocab, token_id, buffer, 256, 0, True)
        return buffer.raw[:count]

    def logits(self, ids: Sequence[int]) -> F32Array:
        """Logits of every position, float32, shape (T, vocab)."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self._context), True)
        return self._decode(ids, 0)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The most likely next token, `count` times; an end token counts as any other."""
        found = [int(self.logits(ids)[-1].argmax())]
        while len(found) < count:
            position = len(ids) + len(found) - 1
            found.append(int(self._decode(found[-1:], position)[-1].argmax()))
        return found

    def _decode(self, ids: Sequence[int], first: int) -> F32Array:
        lib, size = self.lib, len(ids)
        batch = lib.llama_batch_init(size, 0, 1)
        try:
            batch.n_tokens = size
            for i, token_id in enumerate(ids):
                batch.token[i], batch.pos[i] = token_id, first + i
                batch.n_seq_id[i], batch.logits[i] = 1, True
                batch.seq_id[i][0] = 0
            status = lib.llama_decode(self._context, batch)
            assert status == 0, f"llama_decode gave {status}: {''.join(_MESSAGES[-12:])}"
            flat = lib.llama_get_logits(self._context)
            return np.ctypeslib.as_array(flat, (size, self.vocab_size)).copy()
        finally:
            lib.llama_batch_free(batch)

    def close(self) -> None:
        """Free the model; closing twice is fine."""
        if self._context is not None:
            self.lib.llama_free(self._context)
        if self._model is not None:
            self.lib.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> LlamaJudge:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_MESSAGES: list[str] = []
_KEPT: list[Any] = []  # ctypes callbacks must outlive their registration


def _library() -> Any:
    """The bindings, initialised once; what llama.cpp says is kept for a failed assert."""
    lib = pytest.importorskip(
        "llama_cpp.llama_cpp",
        reason="llama-cpp-python, the judge, cannot be imported",
        exc_type=ImportError,
    )
    if not _KEPT:
        keep = lib.llama_log_callback(
            lambda level, text, data: _MESSAGES.append(text.decode("utf-8", "replace"))
        )
        lib.llama_log_set(keep, None)
        _KEPT.append(keep)
        # The package opens the null device twice when it is imported and never closes it.
        from llama_cpp import _utils

        for file in (_utils.outnull_file, _utils.errnull_file):
            atexit.register(file.close)
        lib.llama_backend_init()
    return lib
