"""A generation, whatever computes its logits: prompt in, tokens until one of three ends, text out.

No torch here: the torch engine and the native one (native_engine.py) share this file.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bcquant.errors import ConfigError
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.stop_strings import StopStrings
from bcquant.runtime.tokenizer import Tokenizer
from bcquant.spec.model_config import ModelConfig


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


class EngineFacts(NamedTuple):
    """What computes.

    Attributes:
        engine: "native" or "torch".
        tier: of the kernels; None for torch.
        threads: that compute.
        precision: of the layers: "exact", "int8" or "int8_token"; for torch its float type.
    """

    engine: str
    tier: str | None
    threads: int
    precision: str


class Generation:
    """A running generation: iterate over it for text, then read `ids` and `stats`.

    Attributes:
        ids: tokens generated so far, without the end token.
        stats: set when the iteration is over.
    """

    def __init__(
        self,
        engine: TextEngine,
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


class TextEngine(ABC):
    """A resident model with its tokenizer.

    Attributes:
        tokenizer: text to ids and back.
        config: shape and arithmetic of the model.
    """

    tokenizer: Tokenizer
    config: ModelConfig

    @property
    @abstractmethod
    def facts(self) -> EngineFacts:
        """What computes."""

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
        self.check(ids, max_new_tokens)
        return Generation(self, ids, max_new_tokens, options or SamplingOptions(), stop)

    @abstractmethod
    def generate_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: SamplingOptions
    ) -> Iterator[int]:
        """Token ids, one by one, up to `max_new_tokens`; the caller ends it at an end token.

        Raises:
            ConfigError: as `generate`.
        """

    def check(self, ids: Sequence[int], max_new_tokens: int) -> None:
        """Refuse a prompt that the model cannot go on from.

        Raises:
            ConfigError: as `generate`.
        """
        cfg = self.config
        if not ids:
            raise ConfigError("the prompt is empty and the model has no begin token; give a prompt")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
        outside = next((i for i in ids if not 0 <= i < cfg.vocab_size), None)
        if outside is not None:
            raise ConfigError(
                f"the prompt holds the id {outside} but the model's vocabulary has "
                f"{cfg.vocab_size}; use the tokenizer that belongs to this model"
            )
        total = len(ids) + max_new_tokens
        if total > cfg.max_positions:
            raise ConfigError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones are {total}, but the "
                f"model's context holds {cfg.max_positions}; shorten the prompt or lower "
                "--max-new-tokens"
            )
