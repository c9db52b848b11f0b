"""The native engine: text over the compiled kernels, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bcquant.errors import ConfigError
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.generation import EngineFacts, TextEngine
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.numpy_sampler import sample
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.tokenizer import Tokenizer, open_tokenizer


class NativeEngine(TextEngine):
    """A packed model with its tokenizer. One generation at a time: they share the caches."""

    def __init__(self, model: NativeModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.config = model.config
        self.tokenizer = tokenizer
        self._running: object = None

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        options: NativeOptions | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> NativeEngine:
        """Load a checkpoint and its tokenizer.

        Args:
            path_or_id: folder, GGUF file or hub id; float checkpoints become float16.
            say: told in one line what computes, and how.
        Raises:
            CheckpointError, ConfigError, KernelError: as `NativeModel.load`.
        """
        with open_model(path_or_id) as source:
            return cls.from_source(source, options, say)

    @classmethod
    def from_source(
        cls,
        source: ModelSource,
        options: NativeOptions | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> NativeEngine:
        """The same from an open checkpoint, which may be closed afterwards."""
        tokenizer = open_tokenizer(source.path)
        return cls(NativeModel.load(source, options, say=say), tokenizer)

    @property
    def facts(self) -> EngineFacts:
        """What computes."""
        model = self.model
        return EngineFacts("native", model.tier, model.options.num_threads, model.precision)

    def generate_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: SamplingOptions
    ) -> Iterator[int]:
        """Token ids, one by one, up to `max_new_tokens`; the caller ends it at an end token.

        Raises:
            ConfigError: as `generate`, or another generation began before this one was over.
        """
        self.check(prompt_ids, max_new_tokens)
        mine = self._running = object()
        history = list(prompt_ids)
        generator = np.random.Generator(np.random.PCG64(options.seed))
        self.model.reserve(len(history) + max_new_tokens)
        step_ids: Sequence[int] = history
        for _ in range(max_new_tokens):
            if self._running is not mine:
                raise ConfigError(
                    "another generation of this engine began before this one was over; "
                    "load a second engine to run both"
                )
            token_id = sample(self.model.last_logits(step_ids), history, options, generator)
            history.append(token_id)
            step_ids = (token_id,)
            yield token_id
