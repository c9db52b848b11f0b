"""Prompt in, text out: prefill, one token at a time with a key/value cache, streamed as text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bcquant.errors import ConfigError
from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.runtime.kv_cache import KvCache
from bcquant.runtime.memory import available_memory, plan_memory
from bcquant.runtime.sampler import SamplingOptions, sample
from bcquant.runtime.stop_strings import StopStrings
from bcquant.runtime.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class GenerationStats:
    """What a generation did.

    Attributes:
        num_prompt_tokens, num_new_tokens: an end-of-text token is not counted as new.
        prefill_s, decode_s: seconds for the prompt, and for all tokens after the first.
        stop_reason: "eos", "stop" (a stop string) or "length".
    """

    num_prompt_tokens: int
    num_new_tokens: int
    prefill_s: float
    decode_s: float
    stop_reason: str

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0 when nothing was decoded after the first token."""
        return (
            (self.num_new_tokens - 1) / self.decode_s
            if self.decode_s and self.num_new_tokens > 1
            else 0.0
        )


class Generation:
    """A running generation: iterate over it for text, then read `ids` and `stats`.

    Attributes:
        ids: tokens generated so far, without the end token.
        stats: set when the iteration is over.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        options: SamplingOptions,
        stop: Sequence[str],
    ) -> None:
        self.ids: list[int] = []
        self.stats: GenerationStats | None = None
        self._engine = engine
        self._prompt_ids = list(prompt_ids)
        self._max_new_tokens = max_new_tokens
        self._options = options
        self._stop = StopStrings(stop)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, each valid Unicode; they join to the whole text.

        Raises:
            ShapeError: the model gives no finite logits.
        """
        stream = self._engine.tokenizer.stream()
        eos = set(self._engine.tokenizer.eos_ids)
        reason, first_at = "length", 0.0
        start = time.perf_counter()
        for token_id in self._engine.generate_ids(
            self._prompt_ids, self._max_new_tokens, self._options
        ):
            first_at = first_at or time.perf_counter()
            if token_id in eos:
                reason = "eos"
                break
            self.ids.append(token_id)
            if piece := self._stop.push(stream.push(token_id)):
                yield piece
            if self._stop.is_found:
                reason = "stop"
                break
        tail = self._stop.push(stream.flush()) + self._stop.flush()
        end = time.perf_counter()
        first_at = first_at or end
        self.stats = GenerationStats(
            len(self._prompt_ids), len(self.ids), first_at - start, end - first_at, reason
        )
        if tail:
            yield tail


class Engine:
    """A resident model with its tokenizer."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self.decoder = decoder
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

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 128,
        options: SamplingOptions | None = None,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Start a generation.

        Args:
            prompt: text, or ids (from `Tokenizer.encode_chat`, for example).
            options: how to draw; None is greedy.
            stop: strings that end the text and are left out of it.
        Raises:
            ConfigError: the prompt is empty, holds ids that the model does not have, or does not
                fit into the context together with the new tokens.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        self._check(ids, max_new_tokens)
        return Generation(self, ids, max_new_tokens, options or SamplingOptions(), stop)

    def generate_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: SamplingOptions
    ) -> Iterator[int]:
        """Token ids, one by one, up to `max_new_tokens`; the caller ends it at an end token.

        Raises:
            ConfigError: as `generate`.
        """
        self._check(prompt_ids, max_new_tokens)
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

    def _check(self, ids: Sequence[int], max_new_tokens: int) -> None:
        cfg = self.decoder.config
        if not ids:
            raise ConfigError("the prompt is empty and the model has no begin token; give a prompt")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
        outside = next((i for i in ids if not 0 <= i < cfg.vocab_size), None)
        if outside is not None:
            raise ConfigError(
                f"the prompt holds the id {outside} but the model's vocabulary has "
                f"{cfg.vocab_size}; "
                "use the tokenizer that belongs to this model"
            )
        total = len(ids) + max_new_tokens
        if total > cfg.max_positions:
            raise ConfigError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones are {total}, but the "
                "model's "
                f"context holds {cfg.max_positions}; shorten the prompt or lower --max-new-tokens"
            )
