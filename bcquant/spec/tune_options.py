"""How long and how fast scales and norms are tuned after rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bcquant.errors import ConfigError


@dataclass(frozen=True)
class TuneOptions:
    """Settings of global scale tuning (QUANT.md section 3, G).

    Attributes:
        steps: of Adam; 0 = off.
        batch_tokens: tokens a step, at least one sequence.
        scale_rate: largest step of a scale, relative to its own value. The default is for 4 bits
            (5e-4 raised the held-out KL there); at 2 bits 2e-3 lowered it by a tenth in 15 steps.
        float_rate: the same for norms and biases, relative to their tensor's mean magnitude.
        warmup: share of the steps in which the rates grow to that; a cosine takes them to 0.
        check_every: steps between two looks at the held-out tokens, at which the best state is
            kept and everything is saved.
        seed: order of the sequences.
    """

    steps: int = 0
    batch_tokens: int = 1024
    scale_rate: float = 2e-4
    float_rate: float = 2e-4
    warmup: float = 0.05
    check_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 100_000:
            raise ConfigError(f"tuning steps are {self.steps}; 0 to 100000 is needed")
        for name in ("batch_tokens", "check_every"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"tuning: {name} is {value}; at least 1 is needed")
        for name in ("scale_rate", "float_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(f"tuning: {name} is {value}; a finite rate >= 0 is needed")
        if not 0.0 <= self.warmup <= 1.0:
            raise ConfigError(f"tuning: warmup is {self.warmup}; 0 to 1 is needed")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"tuning: seed is {self.seed}; 0 to 2^63-1 is needed")

    def rate_share(self, step: int) -> float:
        """Share of the rates that step 0, 1, ... takes."""
        warmup = max(1.0, self.warmup * self.steps)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
