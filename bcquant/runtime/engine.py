"""The torch engine: prefill, then one token at a time with a key/value cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.runtime.generation import EngineFacts, Generation, GenerationStats, TextEngine
from bcquant.runtime.kv_cache import KvCache
from bcquant.runtime.memory import available_memory, plan_memory
from bcquant.runtime.sampler import SamplingOptions, sample
from bcquant.runtime.tokenizer import Tokenizer, open_tokenizer

__all__ = ["Engine", "Generation", "GenerationStats"]


class Engine(TextEngine):
    """A model resident in torch, with its tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self.decoder = decoder
        self.config = decoder.config
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Engine:
        """Load a checkpoint and its tokenizer.

        Args:
            path_or_id: folder, GGUF file or hub id; quantized checkpoints are dequantized.
            max_tokens: prompt and new tokens that the memory plan must leave room for; None takes
                up to 2048 or the model's context.
            dtype: None takes float32 if it fits into the available memory, else bfloat16.
            say: told once, in one line, what type was chosen and why.
        Raises:
            CheckpointError, ConfigError: it cannot be read, or does not fit into the memory.
        """
        with open_model(path_or_id) as source:
            tokenizer = open_tokenizer(source.path)
            if dtype is None:
                cfg = source.config
                sizes = [math.prod(source.shape(name)) for name in source.names()]
                tokens = min(max_tokens or 2048, cfg.max_positions)
                cache_values = 2 * cfg.num_layers * cfg.kv_size * tokens
                plan = plan_memory(sum(sizes), max(sizes), cache_values, available_memory())
                dtype = plan.dtype
                if say is not None:
                    say(f"{sum(sizes):,} parameters in {plan.describe()}")
            return cls(Decoder.load(source, dtype=dtype), tokenizer)

    @property
    def facts(self) -> EngineFacts:
        """What computes."""
        dtype = str(self.decoder.embedding.dtype).removeprefix("torch.")
        return EngineFacts("torch", None, torch.get_num_threads(), dtype)

    def generate_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: SamplingOptions
    ) -> Iterator[int]:
        """Token ids, one by one, up to `max_new_tokens`; the caller ends it at an end token.

        Raises:
            ConfigError: as `generate`.
        """
        self.check(prompt_ids, max_new_tokens)
        history = list(prompt_ids)
        cache = KvCache(
            self.decoder.config,
            batch=1,
            max_tokens=len(history) + max_new_tokens,
            dtype=self.decoder.embedding.dtype,
        )
        generator = options.generator()
        step_ids = history
        for _ in range(max_new_tokens):
            logits_BTV = self.decoder.forward(torch.tensor([step_ids]), cache=cache, last_only=True)
            token_id = sample(logits_BTV[0, -1], history, options, generator)
            history.append(token_id)
            step_ids = [token_id]
            yield token_id
