"""BPE over characters, a `tokenizer.json` that marks spaces, as a token table."""

from __future__ import annotations

import re

from bcquant.errors import ExportError
from bcquant.runtime.sentencepiece_proto import BYTE, NORMAL, UNUSED
from bcquant.runtime.token_backends import SPACE_MARK, TokenizersBackend

from .._text_steps import marks_spaces, without_nfc
from .json_bpe import Json, check_model, merge_ids, read_pairs, read_types
from .token_table import (
    BYTE_FALLBACK,
    CHARACTERS,
    CUT_MARKS,
    DUMMY_PREFIX,
    NONE,
    NORMALIZE,
    PREFIX_START,
    SPARE_MARKED,
    TokenTable,
)

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NUM_BYTES = 256
# Where Metaspace puts a mark, which it never does before one.
_SCHEMES = {
    "always": DUMMY_PREFIX | SPARE_MARKED,
    "first": DUMMY_PREFIX | SPARE_MARKED | PREFIX_START,
    "never": 0,
}


def character_table(backend: TokenizersBackend, state: Json, name: str) -> TokenTable:
    """Tokens with marked spaces, types and merges of every id.

    Args:
        state: the parsed `tokenizer.json`.
        name: what to call the tokenizer in an error.
    Raises:
        ExportError: a rule of the file that the section does not have.
    """
    check_model(state, name)
    model = state["model"]
    vocab: dict[str, int] = model["vocab"]
    unknown = model.get("unk_token")
    preparation = _preparation_bits(state, name)
    if bool(preparation & DUMMY_PREFIX) != backend.strips_prefix:
        raise ExportError(
            f"{name}: its decoder takes a space off a text and its encoder puts none there, or the "
            "other way round"
        )
    _check_symbols(model, name)
    pieces, kinds = read_types(backend, state)
    made = {a + b for a, b in read_pairs(model)}
    for token_id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        if kind == NORMAL and _BYTE_PIECE.fullmatch(piece):
            kinds[token_id] = BYTE
            kind = BYTE
        is_odd = (len(piece) == 1 and piece not in vocab and kind != UNUSED) or (
            kind == BYTE and piece in made
        )
        if is_odd:
            raise ExportError(
                f"{name}: the token {piece!r} is met in text in a way that a package cannot say"
            )
    return TokenTable(
        kind=CHARACTERS,
        bits=preparation | (BYTE_FALLBACK if model.get("byte_fallback") else 0),
        split_rule=0,
        texts=[piece.encode() for piece in pieces],
        types=kinds,
        scores=(),
        merges=merge_ids(model, set(vocab)),
        unknown=NONE if unknown is None else int(vocab[unknown]),
    )


def _check_symbols(model: Json, name: str) -> None:
    """How characters that are no token are treated."""
    vocab = model["vocab"]
    unknown = model.get("unk_token")
    num_bytes = sum(f"<0x{byte:02X}>" in vocab for byte in range(_NUM_BYTES))
    falls_back = bool(model.get("byte_fallback"))
    wrong: str | None = None
    if model.get("ignore_merges"):
        wrong = "takes whole words before merges without byte-level BPE"
    elif falls_back and num_bytes != _NUM_BYTES:
        wrong = f"falls back to bytes and has tokens for {num_bytes} of 256"
    elif not falls_back and unknown is not None and not model.get("fuse_unk"):
        wrong = "has a separate unknown token for each unknown character"
    elif unknown is not None and unknown not in vocab:
        wrong = f"has an unknown token {unknown!r} that is none"
    if wrong is not None:
        raise ExportError(f"{name}: it {wrong}, which a package cannot say")


def _preparation_bits(state: Json, name: str) -> int:
    """What the file does to text first, which may be NFC and then only the marking of spaces."""
    normalizes, steps = without_nfc(state)
    bits = NORMALIZE if normalizes else 0
    prepend = {"type": "Prepend", "prepend": SPACE_MARK}
    if steps and marks_spaces(steps[-1]) and steps[:-1] in ([], [prepend]):
        return bits | (DUMMY_PREFIX if len(steps) == 2 else 0)
    if len(steps) == 1 and steps[0].get("type") == "Metaspace":
        return bits | _metaspace_bits(steps[0], name)
    raise ExportError(
        f"{name}: its text preparation is {[step.get('type') for step in steps]}; after NFC a "
        "package knows a Prepend of one space mark and a Replace of spaces by it, or a Metaspace"
    )


def _metaspace_bits(step: Json, name: str) -> int:
    scheme = step.get("prepend_scheme")
    if step.get("replacement") != SPACE_MARK or scheme not in _SCHEMES:
        raise ExportError(
            f"{name}: its Metaspace marks spaces by {step.get('replacement')!r} with the scheme "
            f"{scheme!r}; a package knows {SPACE_MARK!r} with {', '.join(_SCHEMES)}"
        )
    return _SCHEMES[scheme] | (CUT_MARKS if step.get("split") else 0)
