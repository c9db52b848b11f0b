"""A GGUF file in llama.cpp, through llama-cpp-python, on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import BackendKind, F32Array, require
from bcquant.io.gguf_header import read_header

PACKAGE = "llama-cpp-python"
_F32 = 0  # GGML_TYPE_F32
_LAYER_OUTPUT = "l_out-"  # what llama.cpp calls the residual stream after block i


class LlamaCppBackend:
    """An open model; keys and values are kept in float32, since llama.cpp's own default is float16.

    Attributes:
        vocab_size: columns of the logits.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Load a file.

        Raises:
            CheckpointError: it is damaged, or llama.cpp refuses it.
        """
        read_header(path)  # our own sentences for a damaged file; llama.cpp only says "failed"
        self._library = require("llama_cpp", PACKAGE)
        try:
            self._llama = self._library.Llama(
                str(path), n_ctx=max_tokens, n_batch=max_tokens, n_ubatch=max_tokens,
                logits_all=True, type_k=_F32, type_v=_F32, verbose=False,
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: llama.cpp cannot load it: {error}") from error
        self.vocab_size = int(self._llama.n_vocab())

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        data = text.encode("utf-8", "replace")
        ids: list[int] = self._llama.tokenize(data, add_bos=True, special=True)
        return ids

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`."""
        self._llama.reset()
        self._llama.eval(list(ids))
        return np.array(self._llama.scores[: len(ids)])

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`."""
        found: list[int] = []
        self._llama.reset()
        step = list(ids)
        while len(found) < num_tokens:
            self._llama.eval(step)
            found.append(int(self._llama.scores[self._llama.n_tokens - 1].argmax()))
            step = found[-1:]
        return found

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`; a second context with a callback on each block's output."""
        seen: dict[str, F32Array] = {}
        ggml = _ggml()

        def look(tensor: int, is_question: bool, user_data: int) -> bool:
            name = ggml.ggml_get_name(tensor).decode()
            is_wanted = name.startswith(_LAYER_OUTPUT)
            if is_wanted and not is_question:
                count = ggml.ggml_nelements(tensor)
                data = ctypes.cast(ggml.ggml_get_data(tensor), ctypes.POINTER(ctypes.c_float))
                seen[name] = np.ctypeslib.as_array(data, (count,)).reshape(len(ids), -1).copy()
            return is_wanted or not is_question

        usual = self._llama._ctx
        params = self._llama.context_params
        params.cb_eval = callback = self._library.ggml_backend_sched_eval_callback(look)
        watched = self._library._internals.LlamaContext(
            model=self._llama._model, params=params, verbose=False
        )
        try:
            self._llama._ctx = watched
            self.logits(ids)
        finally:
            self._llama._ctx = usual
            params.cb_eval = type(callback)()
            watched.close()
        return [seen[f"{_LAYER_OUTPUT}{i}"] for i in range(len(seen))]

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


def _ggml() -> Any:
    """ggml's own functions on tensors, with their types."""
    from llama_cpp._ggml import libggml

    for name, result in (
        ("ggml_get_name", ctypes.c_char_p),
        ("ggml_get_data", ctypes.c_void_p),
        ("ggml_nelements", ctypes.c_int64),
    ):
        function = getattr(libggml, name)
        function.restype, function.argtypes = result, [ctypes.c_void_p]
    return libggml


BACKEND = BackendKind(
    name="llama_cpp",
    package=PACKAGE,
    rank=3,
    accepts=lambda path: path.suffix.lower() == ".gguf",
    open=LlamaCppBackend,
)
