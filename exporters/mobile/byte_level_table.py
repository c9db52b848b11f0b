"""Byte-level BPE of a `tokenizer.json` as a token table.

The section knows a few rules for cutting text; every other rule of the file is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bcquant.errors import ExportError
from bcquant.runtime.gguf_tokenizer import SPLITS
from bcquant.runtime.sentencepiece_proto import CONTROL, NORMAL, UNUSED, USER_DEFINED
from bcquant.runtime.token_backends import TokenizersBackend, byte_alphabet

from .._text_steps import split_steps, without_nfc
from .json_bpe import Json, check_model, merge_ids, read_pairs, read_types
from .token_table import BYTE_LEVEL, NONE, NORMALIZE, WHOLE_WORDS, TokenTable

_ALPHABET = byte_alphabet()
DIGITS = "Digits"
# The expressions, one after the other, and the number of the rule in the section.
SPLIT_RULES: dict[tuple[str, ...], int] = {
    SPLITS["gpt-2"]: 1,
    SPLITS["smollm"]: 2,
    SPLITS["llama3"]: 3,
    SPLITS["qwen2"]: 4,
    (DIGITS, *SPLITS["gpt-2"]): 5,
}


def byte_level_table(backend: TokenizersBackend, state: Json, name: str) -> TokenTable:
    """Tokens as raw bytes, types and merges of every id.

    Args:
        state: the parsed `tokenizer.json`.
        name: what to call the tokenizer in an error.
    Raises:
        ExportError: a rule of the file that the section does not have.
    """
    check_model(state, name)
    model = state["model"]
    vocab: dict[str, int] = model["vocab"]
    normalizes, steps = without_nfc({"normalizer": state.get("normalizer")})
    if steps:
        raise ExportError(
            f"{name}: it normalizes text by {[step.get('type') for step in steps]} first; before "
            "byte-level BPE a package does no more than NFC"
        )
    rule, whole_words = _split_rule(state, name), bool(model.get("ignore_merges"))
    unknown = _byte_level_unknown(model, name)
    pieces, kinds = read_types(backend, state)
    reachable = _made(model, [c for c in _ALPHABET if c in vocab])
    texts = []
    for token_id, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        is_word = all(c in _ALPHABET for c in piece)
        if kind == NORMAL and is_word:
            texts.append(bytes(_ALPHABET[c] for c in piece))
            continue
        texts.append(piece.encode())
        if kind == NORMAL:
            kinds[token_id] = UNUSED  # no byte is spelled so; it can only be generated
        elif kind in (CONTROL, USER_DEFINED) and piece:
            _check_word(backend, piece, reachable, whole_words and is_word, vocab, name)
    return TokenTable(
        kind=BYTE_LEVEL,
        bits=(WHOLE_WORDS if whole_words else 0) | (NORMALIZE if normalizes else 0),
        split_rule=rule,
        texts=texts,
        types=kinds,
        scores=(),
        merges=merge_ids(model, reachable),
        unknown=unknown,
    )


def _check_word(
    backend: TokenizersBackend,
    piece: str,
    reachable: set[str],
    can_be_whole: bool,
    vocab: Mapping[str, int],
    name: str,
) -> None:
    """A token that is cut out must not be a word as well, unless merges make it one."""
    is_bad = len(piece.encode()) == 1 and piece not in reachable
    if piece in reachable:
        is_bad = not piece.isascii()  # as a word it would stand for other bytes
    elif can_be_whole and piece in vocab:
        words = backend.tokenizer.pre_tokenizer.pre_tokenize_str(piece)
        is_bad = is_bad or len(words) == 1
    if is_bad:
        raise ExportError(
            f"{name}: the token {piece!r} is both cut out of texts and a word of the vocabulary "
            "in a way that a package cannot say"
        )


def _byte_level_unknown(model: Json, name: str) -> int:
    vocab = model["vocab"]
    missing = [c for c in _ALPHABET if c not in vocab]
    token = model.get("unk_token")
    if not missing:
        return NONE
    if model.get("byte_fallback") or (token is not None and model.get("fuse_unk")):
        raise ExportError(
            f"{name}: {len(missing)} bytes have no token, and it fuses unknown ones or falls back "
            "to bytes, which a package cannot say of byte-level BPE"
        )
    if token is not None and (
        token not in vocab or any(token in pair for pair in read_pairs(model))
    ):
        raise ExportError(f"{name}: its unknown token {token!r} is none, or part of a merge")
    return NONE if token is None else int(vocab[token])


def _split_rule(state: Json, name: str) -> int:
    """The number of the pre-tokenizer's rule."""
    found, kinds = split_steps(state, DIGITS, name, "none that a package can say")
    ends_in_bytes = kinds[-1:] == ["ByteLevel"] and kinds.count("ByteLevel") == 1
    if not ends_in_bytes or found not in SPLIT_RULES:
        raise ExportError(
            f"{name}: it cuts text by {list(found)}; a package knows the rules of gpt-2, smollm, "
            "llama3 and qwen2, ending in ByteLevel"
        )
    return SPLIT_RULES[found]


def _made(model: Json, symbols: Sequence[str]) -> set[str]:
    """Every token that merging can make out of symbols, and the symbols."""
    made = set(symbols)
    pairs = read_pairs(model)
    while True:
        before = len(made)
        made.update(a + b for a, b in pairs if a in made and b in made)
        if len(made) == before:
            return made
