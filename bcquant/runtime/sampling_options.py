"""How to draw a token, for both engines; torch only where its generator is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bcquant.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SamplingOptions:
    """How to draw a token.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token (greedy).
        top_k: keep the k most likely tokens (and ties with the last of them); 0 keeps all.
        top_p: keep the smallest set of tokens with this probability; 1 keeps all.
        min_p: keep tokens with at least this share of the best token's probability; 0 keeps all.
        repetition_penalty: logits of tokens seen before are divided by it when positive and
            multiplied by it when negative; 1 changes nothing.
        seed: of the generator that draws; the same seed gives the same text.
    Raises:
        ConfigError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, "0 (greedy) or more", self.temperature >= 0),
            ("top_k", self.top_k, "0 (all tokens) or more", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", self.min_p, "from 0 to 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", self.repetition_penalty, "above 0", self.repetition_penalty > 0),
            ("seed", self.seed, "from 0 to 2^63 - 1", 0 <= self.seed < 2**63),
        )
        for name, value, needed, is_valid in checks:
            if not is_valid or not math.isfinite(value):
                raise ConfigError(f"{name} is {value!r}; {needed} is needed")

    def generator(self) -> torch.Generator:
        """A CPU generator at the start of this seed's sequence."""
        import torch

        return torch.Generator().manual_seed(self.seed)
