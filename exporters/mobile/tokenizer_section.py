"""The tokenizer of a checkpoint as a section of a package, proved to give the checkpoint's ids.

What the section cannot say is refused by name. What it says is then read back: the libraries that
the checkpoint's own tokenizer runs on are given the rules of the section alone, and their ids are
compared. The runtime's C++ is compared with the same libraries in tests/mobile/test_tokenizer.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from bcquant.errors import ExportError
from bcquant.runtime.hard_texts import HARD_TEXTS
from bcquant.runtime.sentencepiece_proto import BYTE, CONTROL, UNKNOWN, USER_DEFINED
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.token_backends import SentencePieceBackend, TokenizersBackend

from .byte_level_table import byte_level_table
from .character_table import character_table
from .piece_table import piece_table
from .token_rebuild import rebuild
from .token_table import ADDED, BYTE_LEVEL, NONE, SENTENCEPIECE, TokenTable, pack_table

_MAX_SPECIAL_PROBES = 400
# What normalizations change: marks in any order, Hangul, compatibility, exclusions from composing.
_NORMALIZED = (
    "e\u0301 a\u0308\u0323 q\u0307\u0323 \u00e9\u0323 \u1e0b\u0323 \u0301x",
    "\u1112\u1161\u11ab\u1100\u1173\u11af \uac00\u11a8 \u1100 \u11a8",
    "\u212b \u2126 \u0958 \ufb1d \uf900 \U0002f800 \u2adc \u0344",
    "\ufb01 \u2460 \uff21 \u3392 \u1e9e \u0130 \u09c7\u09be",
)


def tokenizer_section(tokenizer: Tokenizer, vocab_size: int, name: str) -> bytes:
    """Section 64 of a package.

    Args:
        tokenizer: as `open_tokenizer` gives it.
        vocab_size: rows of the model's embedding.
        name: what to call the tokenizer in an error.
    Returns:
        the bytes of docs/formats/bcq_package_v1.md; same tokenizer, same bytes.
    Raises:
        ExportError: the tokenizer has a rule that the format cannot say, more ids than the model,
            or ids that differ on a text, which is named.
    """
    backend = tokenizer.backend
    if tokenizer.vocab_size > vocab_size:
        raise ExportError(
            f"{name}: its tokenizer has {tokenizer.vocab_size} ids and the model {vocab_size}; "
            "each id needs a row of the embedding"
        )
    if isinstance(backend, SentencePieceBackend):
        table = piece_table(backend, name)
    elif isinstance(backend, TokenizersBackend):
        state: dict[str, Any] = json.loads(backend.tokenizer.to_str())
        decoder = state.get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        is_bytes = any(step.get("type") == "ByteLevel" for step in steps)
        table = (byte_level_table if is_bytes else character_table)(backend, state, name)
    else:
        raise ExportError(f"{name}: a tokenizer of kind {type(backend).__name__} has no section")
    _prove(table, tokenizer, rebuild(table, name).encode, name)
    before, after = (
        _one_of(ids, where, table, name)
        for ids, where in (
            (tokenizer.special.prefix_ids, "before"),
            (tokenizer.special.suffix_ids, "after"),
        )
    )
    return pack_table(table, before, after)


Encode = Callable[[str, bool], list[int]]


def _one_of(ids: tuple[int, ...], where: str, table: TokenTable, name: str) -> int:
    if len(ids) > 1 or any(not 0 <= i < len(table.texts) for i in ids):
        raise ExportError(
            f"{name}: it puts the ids {list(ids)} {where} a text; a package has room for one"
        )
    return ids[0] if ids else NONE


def _prove(table: TokenTable, tokenizer: Tokenizer, rebuilt: Encode, name: str) -> None:
    """Ids of hard texts, and the bytes of every id.

    Raises:
        ExportError: they differ.
    """
    backend = tokenizer.backend
    for probe in (*HARD_TEXTS, *_NORMALIZED, *_special_probes(table)):
        for parse_special in (True, False):
            wanted = backend.encode(probe, parse_special)
            got = rebuilt(probe, parse_special)
            if got != wanted:
                raise ExportError(
                    f"{name}: as a package {probe!r} gives {got[:20]} where the checkpoint's "
                    f"tokenizer gives {wanted[:20]}; report this model to bcquant"
                )
    for token_id in range(len(table.texts)):
        shown = b"" if backend.is_special(token_id) else backend.token_bytes(token_id)
        if shown != _shown(table, token_id):
            raise ExportError(
                f"{name}: token {token_id} would show as {_shown(table, token_id)!r} and not as "
                f"{shown!r}; report this model to bcquant"
            )


def _shown(table: TokenTable, token_id: int) -> bytes:
    """What the runtime shows for an id."""
    text, kind = table.texts[token_id], table.types[token_id]
    if kind == CONTROL:
        return b""
    if kind == UNKNOWN:
        return " \u2047 ".encode() if table.kind == SENTENCEPIECE else b""
    if kind == BYTE:
        return bytes([int(text[3:5], 16)])
    is_raw = kind == ADDED or (kind == USER_DEFINED and table.kind != SENTENCEPIECE)
    return text if is_raw or table.kind == BYTE_LEVEL else text.replace("\u2581".encode(), b" ")


def _special_probes(table: TokenTable) -> Iterable[str]:
    """A text around each token that is cut out, the first few hundred of them."""
    cut = (UNKNOWN, CONTROL, USER_DEFINED, ADDED)
    texts = (
        text.decode()
        for text, kind in zip(table.texts, table.types, strict=True)
        if kind in cut and text
    )
    return (f"a {text} b{text}{text[:-1]}" for text in islice(texts, _MAX_SPECIAL_PROBES))
