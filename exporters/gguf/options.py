"""Flags of `bcquant export gguf` as one value."""

from __future__ import annotations

from dataclasses import dataclass

ASYM_AS = ("exact", "q4_1")
UNFIT_AS = ("f16", "f32")
EMBEDDING_BITS = (8, 16)


@dataclass(frozen=True)
class GgufOptions:
    """How quantized weights are stored.

    Attributes:
        asym_as: 4-bit asymmetric groups below 256: "exact" (Q5_0, 5.5 bits) or "q4_1" (5.0 bits,
            each block's minimum rounded to float16).
        unfit_as: weights that no block type holds exactly: "f16" (rounded) or "f32" (exact).
        embedding_bits: 16 keeps a float embedding and head as they are; 8 rounds them to Q8_0.
        context: longest text in tokens to declare; None = the model's own.
        allow_other_ids: write although llama.cpp cuts some texts into other ids.
    """

    asym_as: str = "exact"
    unfit_as: str = "f16"
    embedding_bits: int = 16
    context: int | None = None
    allow_other_ids: bool = False
