"""What quantized bytes mean, apart from how they were found."""

from __future__ import annotations

from dataclasses import dataclass

from bcquant.errors import ConfigError

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class QuantFormat:
    """A uniform integer grid: W[n,k] = scales[n,k//g] * (codes[n,k] - zeros[n,k//g]).

    Attributes:
        bits: 2, 3, 4 or 8; codes are 0 .. 2^bits - 1.
        group_size: input columns that share a scale; -1 = the whole row. The last group is
            shorter when it does not divide the row.
        symmetric: every zero is 2^(bits-1).
        activation: "none" (float activations) or "int8_token" (int8, symmetric, scale found per
            token at run time: W8A8).
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    activation: str = "none"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(
                f"bits is {self.bits!r}; one of {', '.join(map(str, BITS))} is needed"
            )
        if self.group_size != -1 and (self.group_size < 8 or self.group_size % 8):
            raise ConfigError(
                f"group_size is {self.group_size}; -1 (whole row) or a multiple of 8 is needed"
            )
        if self.activation not in ("none", "int8_token"):
            raise ConfigError(
                f"activation is {self.activation!r}; 'none' or 'int8_token' is needed"
            )

    @property
    def max_code(self) -> int:
        """Largest code, 2^bits - 1."""
        return (1 << self.bits) - 1

    @property
    def symmetric_zero(self) -> int:
        """The zero of a symmetric grid, 2^(bits-1)."""
        return 1 << (self.bits - 1)

    def group_width(self, in_features: int) -> int:
        """Columns per group for a row of `in_features`."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)

    def num_groups(self, in_features: int) -> int:
        """Groups in a row of `in_features`: ceil(K / group_size)."""
        return -(-in_features // self.group_width(in_features))

    def bits_per_weight(self, in_features: int) -> float:
        """Stored bits per weight with fp16 scales and, if asymmetric, `bits` per zero."""
        per_group = 16 + (0 if self.symmetric else self.bits)
        return self.bits + per_group * self.num_groups(in_features) / in_features
