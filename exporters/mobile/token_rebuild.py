"""Token tables back to the libraries that the checkpoint's own tokenizers run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcquant.runtime.sentencepiece_proto import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Normalizer,
    Piece,
    SpecialIds,
    write_bpe_model,
)
from bcquant.runtime.token_backends import (
    SPACE_MARK,
    AddedToken,
    SentencePieceBackend,
    TokenizersBackend,
    byte_alphabet,
)

from .byte_level_table import DIGITS, SPLIT_RULES
from .token_table import (
    ADDED,
    BYTE_FALLBACK,
    BYTE_LEVEL,
    CUT_MARKS,
    DUMMY_PREFIX,
    NONE,
    NORMALIZE,
    PREFIX_START,
    SENTENCEPIECE,
    SPARE_MARKED,
    SQUEEZE,
    WHOLE_WORDS,
    TokenTable,
)

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers


# A piece that stands for an id without one begins so; no text has this noncharacter.
_NEVER_MET = "\U0010ffff"


def rebuild(table: TokenTable, name: str) -> SentencePieceBackend | TokenizersBackend:
    """A backend that follows nothing but a table, to compare ids with.

    Args:
        name: what to call the tokenizer in an error.
    """
    return _pieces(table, name) if table.kind == SENTENCEPIECE else _ranks(table, name)


def _pieces(table: TokenTable, name: str) -> SentencePieceBackend:
    added = {
        i: AddedToken(text.decode(), is_special=False)
        for i, (text, kind) in enumerate(zip(table.texts, table.types, strict=True))
        if kind == ADDED
    }
    last = max((i for i, kind in enumerate(table.types) if kind not in (ADDED, UNUSED)), default=-1)
    pieces = [
        Piece(table.texts[i].decode() or f"{_NEVER_MET}{i}", table.scores[i], table.types[i])
        for i in range(last + 1)
    ]
    # The library has no added tokens of its own; a place of one is held by a piece never met.
    pieces = [
        Piece(f"{_NEVER_MET}{i}", 0.0, UNUSED) if i in added else p for i, p in enumerate(pieces)
    ]
    normalizer = Normalizer(
        add_dummy_prefix=bool(table.bits & DUMMY_PREFIX),
        remove_extra_whitespaces=bool(table.bits & SQUEEZE),
    )
    ids = SpecialIds(table.unknown, NONE, NONE, NONE)
    return SentencePieceBackend(write_bpe_model(pieces, ids, normalizer), name, added)


def _ranks(table: TokenTable, name: str) -> TokenizersBackend:
    from tokenizers import AddedToken as RustToken
    from tokenizers import Tokenizer, decoders, models, normalizers

    is_bytes = table.kind == BYTE_LEVEL
    stand_in = {byte: c for c, byte in byte_alphabet().items()}
    spelled: list[str] = []
    for i, (text, kind) in enumerate(zip(table.texts, table.types, strict=True)):
        if kind == UNUSED:
            spelled.append(f"{_NEVER_MET}{i}")
        elif is_bytes and kind == NORMAL:
            spelled.append("".join(stand_in[byte] for byte in text))
        else:
            spelled.append(text.decode() or f"{_NEVER_MET}{i}")
    unknown = None if table.unknown == NONE else spelled[table.unknown]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(spelled)},
            merges=[(spelled[a], spelled[b]) for a, b in table.merges],
            unk_token=unknown,
            fuse_unk=not is_bytes,
            byte_fallback=bool(table.bits & BYTE_FALLBACK),
            ignore_merges=bool(table.bits & WHOLE_WORDS),
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.NFC()] if table.bits & NORMALIZE else []
    if is_bytes:
        tokenizer.pre_tokenizer = _pre_tokenizer(table.split_rule)
    elif table.bits & (SPARE_MARKED | CUT_MARKS):
        tokenizer.pre_tokenizer = _metaspace(table.bits)
    else:
        steps += [normalizers.Prepend(SPACE_MARK)] if table.bits & DUMMY_PREFIX else []
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel() if is_bytes else decoders.ByteFallback()
    for i, kind in enumerate(table.types):
        if kind in (CONTROL, USER_DEFINED) and table.texts[i]:
            token = RustToken(spelled[i], normalized=False, special=kind == CONTROL)
            add = tokenizer.add_special_tokens if kind == CONTROL else tokenizer.add_tokens
            add([token])
    return TokenizersBackend(tokenizer, name)


def _metaspace(bits: int) -> pre_tokenizers.PreTokenizer:
    from tokenizers import pre_tokenizers

    scheme = "never"
    if bits & DUMMY_PREFIX:
        scheme = "first" if bits & PREFIX_START else "always"
    return pre_tokenizers.Metaspace(SPACE_MARK, scheme, split=bool(bits & CUT_MARKS))


def _pre_tokenizer(rule: int) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    expressions = next(found for found, number in SPLIT_RULES.items() if number == rule)
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True)
        if expression == DIGITS
        else pre_tokenizers.Split(Regex(expression), behavior="isolated")
        for expression in expressions
    ]
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*steps, bare])
