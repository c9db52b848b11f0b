"""A checkpoint folder in transformers, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import BackendKind, F32Array, require

PACKAGE = "transformers"


class TransformersBackend:
    """An open model with AutoTokenizer's tokenizer.

    Attributes:
        vocab_size: columns of the logits.
    """

    def __init__(self, folder: Path) -> None:
        """Load a folder.

        Raises:
            CheckpointError: transformers refuses it.
            ConfigError: transformers or torch is not installed.
        """
        require("torch", "torch")
        library = require("transformers", PACKAGE)
        library.utils.logging.disable_progress_bar()
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(folder)
            self._model = library.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(f"{folder}: transformers cannot load it: {said}") from error
        self._model.eval()
        self.vocab_size = int(self._model.config.vocab_size)

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`."""
        return np.asarray(self._run(ids).logits[0].float().numpy())

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`."""
        import torch

        prompt = torch.tensor([list(ids)])
        with torch.inference_mode():
            out = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                num_beams=1,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        return [int(i) for i in out[0, len(ids) :]]

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`.

        transformers applies the final norm to the last block's state, so that one is left out.
        """
        states = self._run(ids, output_hidden_states=True).hidden_states
        return [np.asarray(h[0].float().numpy()) for h in states[1:-1]]

    def close(self) -> None:
        """Drop the model."""
        self._model = None

    def _run(self, ids: Sequence[int], **wanted: bool) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([list(ids)]), use_cache=False, **wanted)


def _accepts(path: Path) -> bool:
    return (path / "config.json").is_file()


BACKEND = BackendKind(
    name="transformers",
    package=PACKAGE,
    rank=4,
    accepts=_accepts,
    open=lambda path, max_tokens: TransformersBackend(path),
)
