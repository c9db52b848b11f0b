"""Reads the tokenizer section of a package as tables; nothing in it is trusted.

It says which tokens there are. Texts become ids in `mobile/runtime/tokenizer.cpp`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError

SENTENCEPIECE, BYTE_LEVEL, CHARACTERS = 1, 2, 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, ADDED = range(1, 8)

_HEADER = struct.Struct("<5IiI2iI")
_PREFIX, _BEGIN, _END = 1, 1 << 4, 1 << 5
_OF_PREFIX = 0b11 << 7


@dataclass(frozen=True)
class _Rules:
    """What a kind may say: bits, pre-tokenizers, and types up to the last."""

    bits: int
    pre_tokenizers: range
    last_type: int


_RULES = {
    SENTENCEPIECE: _Rules(0b110111, range(1), ADDED),
    BYTE_LEVEL: _Rules(0b1111000, range(1, 6), UNUSED),
    CHARACTERS: _Rules(0b1111110101, range(1), BYTE),
}


@dataclass(frozen=True)
class TokenizerTables:
    """What a section holds.

    Attributes:
        kind: SENTENCEPIECE, BYTE_LEVEL or CHARACTERS.
        bits: rules, as in the format's page.
        pre_tokenizer: of BYTE_LEVEL, 1 .. 5; else 0.
        unknown_id, begin_id, end_id: None = none.
        offsets: (T + 1,) where each text begins in `texts`.
        scores: (T,) float32 of SENTENCEPIECE; else empty.
        merges: (M, 2) left and right token by rank; empty for SENTENCEPIECE.
        types: (T,) NORMAL .. ADDED.
        texts: all bytes.
    """

    kind: int
    bits: int
    pre_tokenizer: int
    unknown_id: int | None
    begin_id: int | None
    end_id: int | None
    offsets: npt.NDArray[np.uint32]
    scores: npt.NDArray[np.float32]
    merges: npt.NDArray[np.uint32]
    types: npt.NDArray[np.uint8]
    texts: bytes

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.types)

    def token(self, token_id: int) -> bytes:
        """The text of a token; IndexError: there is none of that id."""
        if not 0 <= token_id < self.num_tokens:
            raise IndexError(f"token {token_id} of {self.num_tokens}")
        return self.texts[self.offsets[token_id] : self.offsets[token_id + 1]]


def read_tokenizer(data: bytes | memoryview, vocab_size: int, where: str) -> TokenizerTables:
    """Check a section and cut it into its tables.

    Args:
        vocab_size: of the model; no token lies beyond it.
        where: names the source in errors.
    Raises:
        CheckpointError: it is cut or too long, or a number is out of range.
    """
    data = bytes(data)
    if len(data) < _HEADER.size:
        raise _bad(where, f"it has {len(data)} bytes")
    kind, bits, rule, tokens, merges, unknown, num_bytes, begin, end, _ = _HEADER.unpack_from(data)
    problem = _header_problem(data, vocab_size)
    if problem is not None:
        raise _bad(where, problem)
    scores = tokens if kind == SENTENCEPIECE else 0
    sizes = (4 * (tokens + 1), 4 * scores, 8 * merges, tokens, num_bytes)
    if _HEADER.size + sum(sizes) != len(data):
        raise _bad(where, f"it has {len(data)} bytes; {_HEADER.size + sum(sizes)} are needed")
    parts, at = [], _HEADER.size
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    tables = TokenizerTables(
        kind=kind,
        bits=bits,
        pre_tokenizer=rule,
        unknown_id=_id(unknown),
        begin_id=_id(begin),
        end_id=_id(end),
        offsets=np.frombuffer(parts[0], "<u4"),
        scores=np.frombuffer(parts[1], "<f4"),
        merges=np.frombuffer(parts[2], "<u4").reshape(-1, 2),
        types=np.frombuffer(parts[3], np.uint8),
        texts=parts[4],
    )
    problem = _tables_problem(tables)
    if problem is not None:
        raise _bad(where, problem)
    return tables


def _header_problem(data: bytes, vocab_size: int) -> str | None:
    """Why no tokenizer has this header, in a clause; None = one may have it."""
    kind, bits, rule, tokens, merges, unknown, _, begin, end, zero = _HEADER.unpack_from(data)
    if kind not in _RULES:
        return f"its kind is {kind}, which this version does not know"
    rules = _RULES[kind]
    if bits & ~rules.bits or rule not in rules.pre_tokenizers or zero:
        return f"its kind {kind} has no bits {bits:#x} with pre-tokenizer {rule}"
    if not 1 <= tokens <= vocab_size or (kind == SENTENCEPIECE and merges):
        return f"it has {tokens} tokens and {merges} merges; the model has {vocab_size}"
    if any(not -1 <= token < tokens for token in (unknown, begin, end)):
        return f"it names the tokens {unknown}, {begin} and {end} of {tokens}"
    if bits & _OF_PREFIX and not bits & _PREFIX:
        return f"its bits {bits:#x} say where a prefix goes that it has not"
    if (begin >= 0, end >= 0) != (bool(bits & _BEGIN), bool(bits & _END)):
        return f"its bits {bits:#x} contradict the tokens {begin} and {end} around a text"
    return None


def _tables_problem(tables: TokenizerTables) -> str | None:
    offsets = tables.offsets
    if offsets[0] != 0 or offsets[-1] != len(tables.texts) or (offsets[1:] < offsets[:-1]).any():
        return "its token texts are out of order"
    if (tables.merges >= tables.num_tokens).any():
        return "a merge is of a token that does not exist"
    if ((tables.types < NORMAL) | (tables.types > _RULES[tables.kind].last_type)).any():
        return "a token has a type that its kind has not"
    if np.isnan(tables.scores).any():
        return "a score is NaN"
    for token_id, kind in enumerate(tables.types):
        is_bytes = tables.kind == BYTE_LEVEL and kind in (NORMAL, UNUSED)
        if not is_bytes and not _is_utf8(tables.token(token_id)):
            return f"the text of token {token_id} is not UTF-8"
    return None


def _id(stored: int) -> int | None:
    return None if stored == -1 else stored


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _bad(where: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{where}: not a sound tokenizer: {problem}; download it again")
