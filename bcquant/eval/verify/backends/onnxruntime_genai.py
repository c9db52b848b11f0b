"""A folder with genai_config.json in onnxruntime-genai: its tokenizer, its cache, its search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import BackendKind, F32Array, require
from bcquant.eval.verify.backends.onnxruntime import OrtBackend

PACKAGE = "onnxruntime-genai"
CONFIG_FILE = "genai_config.json"


class GenaiBackend:
    """An open model; hidden states come from ONNX Runtime on the same graph.

    Attributes:
        vocab_size: columns of the logits.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Load a folder.

        Raises:
            CheckpointError: a file is missing or damaged, or the library refuses it.
        """
        # First: its complaints about a file name the file; genai's do not always.
        self._graph = OrtBackend(folder)
        self._library = require("onnxruntime_genai", PACKAGE)
        self._max_tokens = max_tokens
        try:
            self._model = self._library.Model(str(folder))
            self._tokenizer = self._library.Tokenizer(self._model)
        except Exception as error:  # the library raises plain RuntimeError and its own kinds
            said = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: onnxruntime-genai cannot load it: {said}") from error
        self.vocab_size = self._graph.vocab_size

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        return [int(i) for i in self._tokenizer.encode(text)]

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`."""
        generator = self._generator()
        generator.append_tokens(np.array(ids, np.int32))
        return np.asarray(generator.get_output("logits")[0].astype(np.float32))

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`; it ends where the library says so."""
        generator = self._generator()
        generator.append_tokens(np.array(ids, np.int32))
        found: list[int] = []
        while len(found) < num_tokens and not generator.is_done():
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
        return found

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`."""
        return self._graph.hidden(ids)

    def close(self) -> None:
        """Drop the model."""
        self._graph.close()
        self._tokenizer = self._model = None

    def _generator(self) -> Any:
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self._max_tokens, batch_size=1)
        return self._library.Generator(self._model, params)


BACKEND = BackendKind(
    name="onnxruntime_genai",
    package=PACKAGE,
    rank=1,
    accepts=lambda path: (path / CONFIG_FILE).is_file(),
    open=GenaiBackend,
    open_exact=lambda path, max_tokens: OrtBackend(path, is_exact=True),
)
