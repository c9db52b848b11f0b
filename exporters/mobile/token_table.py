"""The bytes of a tokenizer section, from what the kinds of tokenizers have in common."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

SENTENCEPIECE, BYTE_LEVEL, CHARACTERS = 1, 2, 3
ADDED = 7  # a token type beside those of SentencePiece: cut as a control token, shown as text

DUMMY_PREFIX, SQUEEZE, BYTE_FALLBACK, WHOLE_WORDS, BEGIN, END = (1 << bit for bit in range(6))
# Form C first; what Metaspace of `tokenizers` does otherwise than a dummy prefix.
NORMALIZE, SPARE_MARKED, PREFIX_START, CUT_MARKS = (1 << bit for bit in range(6, 10))

_HEADER = struct.Struct("<5IiI2iI")
NONE = -1


@dataclass(frozen=True)
class TokenTable:
    """What a section says, id by id.

    Attributes:
        kind: SENTENCEPIECE, BYTE_LEVEL or CHARACTERS.
        bits: DUMMY_PREFIX to WHOLE_WORDS, NORMALIZE to CUT_MARKS.
        split_rule: number of the pre-tokenizer, 0 unless BYTE_LEVEL.
        texts, types: of every id.
        scores: of every id for SENTENCEPIECE, else empty.
        merges: pairs of ids, the earliest first; empty for SENTENCEPIECE.
        unknown: id or NONE.
    """

    kind: int
    bits: int
    split_rule: int
    texts: Sequence[bytes]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[tuple[int, int]]
    unknown: int


def pack_table(table: TokenTable, before: int, after: int) -> bytes:
    """The section of docs/formats/bcq_package_v1.md.

    Args:
        before, after: tokens that go around a text, or NONE.
    """
    bits = table.bits | (BEGIN if before != NONE else 0) | (END if after != NONE else 0)
    begins = [0]
    for text in table.texts:
        begins.append(begins[-1] + len(text))
    flat = [token for merge in table.merges for token in merge]
    return b"".join(
        (
            _HEADER.pack(
                table.kind, bits, table.split_rule, len(table.texts), len(table.merges),
                table.unknown, begins[-1], before, after, 0,
            ),
            struct.pack(f"<{len(begins)}I", *begins),
            struct.pack(f"<{len(table.scores)}f", *table.scores),
            struct.pack(f"<{len(flat)}I", *flat),
            bytes(table.types),
            *table.texts,
        )
    )  # fmt: skip
