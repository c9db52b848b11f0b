"""The tokenizer of a checkpoint as `tokenizer.*` keys, proved to give the checkpoint's ids."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bcquant.errors import ExportError
from bcquant.models.source import ModelSource
from bcquant.runtime.gguf_tokenizer import tokenizer_from_metadata
from bcquant.runtime.hard_texts import HARD_TEXTS
from bcquant.runtime.sentencepiece_proto import CONTROL, UNUSED, USER_DEFINED
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.token_backends import (
    Backend,
    SentencePieceBackend,
    TokenizersBackend,
)
from bcquant.runtime.tokenizer import open_tokenizer

from .byte_level import byte_level_metadata, is_byte_level, unused_token, uses_nfc
from .file import Metadata, Value, text, u32
from .sentencepiece import marked_metadata, rules_of, sentencepiece_metadata

_MAX_SPECIAL_TEXTS = 400

Encode = Callable[[str, bool], list[int]]


@dataclass(frozen=True)
class Vocabulary:
    """What the tokenizer part of the file holds.

    Attributes:
        metadata: `tokenizer.*` keys.
        notes: what a user should know, one sentence each.
        stuck: tokens after which llama.cpp gives other ids than the checkpoint's tokenizer.
    """

    metadata: Metadata
    notes: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


def build_vocabulary(source: ModelSource) -> Vocabulary:
    """The tokenizer keys of a model, of exactly its vocabulary size, and checked.

    Raises:
        CheckpointError: the tokenizer is missing or malformed.
        ConfigError: it is of a kind that bcquant cannot read.
        ExportError: llama.cpp has no equal of it, it is larger than the model's vocabulary, or
            ids differ on a text, which is named.
    """
    path, cfg = source.path, source.config
    tokenizer = open_tokenizer(path)
    is_own_place = path.is_dir() or source.reader.kind == "gguf"
    name, backend = str(path if is_own_place else path.parent), tokenizer.backend
    if tokenizer.vocab_size > cfg.vocab_size:
        raise ExportError(
            f"{name}: its tokenizer has {tokenizer.vocab_size} ids and the model {cfg.vocab_size}; "
            "llama.cpp needs a row of the embedding for every id"
        )
    is_nfc, stuck = False, list[str]()
    if isinstance(backend, SentencePieceBackend):
        found, stuck = sentencepiece_metadata(backend, name)
    else:
        assert isinstance(backend, TokenizersBackend)
        state: dict[str, Any] = json.loads(backend.tokenizer.to_str())
        if is_byte_level(state):
            found, is_nfc = byte_level_metadata(backend, state, name), uses_nfc(state)
        else:
            found, stuck = marked_metadata(backend, state, name)
    _pad(found, cfg.vocab_size)
    notes = _add_special(found, tokenizer, name)
    prove(found, tokenizer, name, stuck)
    if isinstance(backend, SentencePieceBackend):
        shown = [token.text for token in backend.added.values() if not token.is_special]
        if shown:
            notes.append(
                f"{len(shown)} added tokens, {shown[0]!r} among them, become control tokens: "
                "llama.cpp leaves them out of the text that it generates"
            )
    if is_nfc:
        notes.append(
            "its tokenizer puts text into NFC first and llama.cpp does not: ids differ for text "
            "with combining marks spelled apart"
        )
    return Vocabulary(found, tuple(notes), tuple(stuck))


def _pad(found: Metadata, size: int) -> None:
    """Unused tokens up to the model's vocabulary: llama.cpp needs one for every embedding row."""
    count = len(found["tokenizer.ggml.tokens"].data)
    fillers: dict[str, list[object]] = {
        "tokens": [unused_token(i) for i in range(count, size)],
        "token_type": [UNUSED] * (size - count),
        "scores": [-10000.0] * (size - count),
    }
    for short, extra in fillers.items():
        key = f"tokenizer.ggml.{short}"
        if key in found:
            found[key] = Value(found[key].kind, [*found[key].data, *extra])


def _add_special(found: Metadata, tokenizer: Tokenizer, name: str) -> list[str]:
    """Begin, end and padding ids, what goes around a text, and the chat template; notes."""
    special = tokenizer.special
    ends = special.eos_ids
    for key, token_id in (
        ("bos", special.bos_id),
        ("eos", ends[0] if ends else None),
        ("eot", ends[1] if len(ends) > 1 else None),
        ("eom", ends[2] if len(ends) > 2 else None),
        ("padding", special.pad_id),
    ):
        if token_id is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = u32(token_id)
    frame = (special.prefix_ids, special.suffix_ids)
    if frame[0] not in ((), (special.bos_id,)) or frame[1] not in ((), ends[:1]):
        raise ExportError(
            f"{name}: it puts {list(frame[0])} before and {list(frame[1])} after a text; GGUF can "
            "only say whether bos and eos are added"
        )
    found["tokenizer.ggml.add_bos_token"] = Value("bool", bool(frame[0]))
    found["tokenizer.ggml.add_eos_token"] = Value("bool", bool(frame[1]))
    if special.chat_template is not None:
        found["tokenizer.chat_template"] = text(special.chat_template)
    notes = []
    if not ends:
        notes.append("it names no end token, so llama.cpp takes one of its own choice")
    if len(ends) > 3:
        notes.append(
            f"it ends at any of {len(ends)} ids; GGUF has room for three, {list(ends[3:])} are lost"
        )
    return notes


def prove(found: Metadata, tokenizer: Tokenizer, name: str, stuck: Sequence[str] = ()) -> None:
    """Compare ids with those that the keys give, in llama.cpp's own rules and in our reader.

    Args:
        stuck: tokens after which llama.cpp is known to differ: texts without them are compared.
    Raises:
        ExportError: ids differ; the message names the text.
    """
    data = {key: value.data for key, value in found.items()}
    readers: list[tuple[Encode, Sequence[str]]] = []
    rebuilt = tokenizer_from_metadata(data, name).backend
    if data["tokenizer.ggml.model"] == "llama":
        readers.append((rules_of(found).encode, stuck))
        # Our reader gives them to SentencePiece, which looks for them after it marked spaces.
        readers.append((rebuilt.encode, [*stuck, *_of_kinds(found, (USER_DEFINED,))]))
    else:
        readers.append((rebuilt.encode, ()))
    for probe in (*HARD_TEXTS, *_special_texts(found, tokenizer.backend)):
        for parse_special in (True, False):
            wanted = tokenizer.backend.encode(probe, parse_special)
            for encode, known in readers:
                if any(token in f" {probe}" for token in known):
                    continue
                got = encode(probe, parse_special)
                if got != wanted:
                    raise ExportError(
                        f"{name}: from GGUF keys {probe!r} gives {got[:20]} where the checkpoint's "
                        f"tokenizer gives {wanted[:20]}; report this model to bcquant"
                    )


def _of_kinds(found: Metadata, wanted: Sequence[int]) -> list[str]:
    tokens, kinds = (found[f"tokenizer.ggml.{key}"].data for key in ("tokens", "token_type"))
    return [token for token, kind in zip(tokens, kinds, strict=True) if kind in wanted]


def _special_texts(found: Metadata, backend: Backend) -> Iterable[str]:
    """A text around each special and user-defined token, the first few hundred of them."""
    tokens = found["tokenizer.ggml.tokens"].data
    marked = {tokens[i] for i in range(backend.vocab_size) if backend.is_special(i)}
    special = dict.fromkeys([*_of_kinds(found, (CONTROL, USER_DEFINED)), *sorted(marked)])
    texts = (f"a {token} b{token}" for token in special)
    return itertools.islice(texts, _MAX_SPECIAL_TEXTS)
