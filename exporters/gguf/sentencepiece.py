"""A SentencePiece BPE model, or a `tokenizer.json` made from one, as GGUF's "llama" vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bcquant.errors import ExportError
from bcquant.runtime.sentencepiece_json import merges_by_score
from bcquant.runtime.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    is_bpe,
    read_normalizer,
    read_pieces,
)
from bcquant.runtime.token_backends import (
    SPACE_MARK,
    Backend,
    SentencePieceBackend,
    TokenizersBackend,
)

from .._text_steps import marks_spaces, preparation
from .byte_level import unused_token
from .file import Metadata, Value, text, u32
from .spm_rules import SpmRules

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_NUM_BYTES = 256


def sentencepiece_metadata(backend: SentencePieceBackend, name: str) -> tuple[Metadata, list[str]]:
    """Tokens, scores, types and the space prefix of a SentencePiece model.

    Tokens that a checkpoint adds beside it become control tokens, as which both sides cut them.

    Args:
        name: what to call the file in an error.
    Returns:
        the keys, and the user-defined tokens after which llama.cpp puts a space of its own.
    Raises:
        ExportError: llama.cpp would give other ids: another kind than BPE, a normalization, or no
            byte pieces.
    """
    pieces, adds_prefix = _proto_pieces(backend.proto, name)
    added = {i: Piece(token.text, 0.0, CONTROL) for i, token in backend.added.items()}
    return _metadata(_with_added(pieces, added), adds_prefix, backend, name)


def marked_metadata(
    backend: TokenizersBackend, state: Mapping[str, Any], name: str
) -> tuple[Metadata, list[str]]:
    """The same of a `tokenizer.json` whose BPE marks spaces and falls back to bytes.

    Scores come from a `tokenizer.model` beside it, else from the order of the merges.

    Args:
        state: the parsed `tokenizer.json`.
        name: the folder.
    Raises:
        ExportError: as `sentencepiece_metadata`; also when merging by score, as llama.cpp does,
            could differ from the merges of the file.
    """
    model_file = Path(name) / "tokenizer.model"
    if not model_file.is_file():
        pieces = _json_pieces(backend, state, name)
        return _metadata(pieces, _prepends_space(state, name), backend, name)
    pieces, adds_prefix = _proto_pieces(model_file.read_bytes(), str(model_file))
    added = {
        int(t["id"]): Piece(t["content"], 0.0, CONTROL if t["special"] else USER_DEFINED)
        for t in state.get("added_tokens", [])
    }
    clashes = [t.text for i, t in added.items() if i < len(pieces) and pieces[i].text != t.text]
    if clashes:
        raise ExportError(f"{name}: its tokenizer.model has another piece for {clashes[0]!r}")
    return _metadata(_with_added(pieces, added), adds_prefix, backend, name)


def _proto_pieces(proto: bytes, name: str) -> tuple[list[Piece], bool]:
    """Pieces of a serialized model, and whether a space goes before a text."""
    if not is_bpe(proto, name):
        raise ExportError(f"{name}: a SentencePiece model of another kind than BPE; BPE is needed")
    normalizer = read_normalizer(proto, name)
    if normalizer.charsmap or normalizer.remove_extra_whitespaces:
        what = "normalizes text" if normalizer.charsmap else "removes extra spaces"
        raise ExportError(f"{name}: it {what} before cutting; llama.cpp does not")
    return read_pieces(proto, name), normalizer.add_dummy_prefix


def _with_added(pieces: Sequence[Piece], added: Mapping[int, Piece]) -> list[Piece]:
    """The pieces and what is added after them; ids between that nothing names are unused."""
    size = max(len(pieces), max(added, default=-1) + 1)
    rest = range(len(pieces), size)
    return [*pieces, *(added.get(i, Piece(unused_token(i), 0.0, UNUSED)) for i in rest)]


def _prepends_space(state: Mapping[str, Any], name: str) -> bool:
    """Whether the file's normalizer and pre-tokenizer only mark spaces, and put one in front."""
    prepends = False
    for step in preparation(state):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE_MARK:
            prepends = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE_MARK:
            if step.get("prepend_scheme", "always") != "never":
                raise ExportError(
                    f"{name}: its Metaspace puts no space before a text that begins with one, and "
                    "llama.cpp does; with tokenizer.model alone in the folder that one's rules are "
                    "exported"
                )
        elif not marks_spaces(step):
            raise ExportError(
                f"{name}: its text preparation {json.dumps(step)[:200]} is none that llama.cpp has"
            )
    return prepends


def _json_pieces(backend: TokenizersBackend, state: Mapping[str, Any], name: str) -> list[Piece]:
    """Pieces with scores such that merging by score gives the file's merges."""
    model = state["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise ExportError(f"{name}: BPE with byte fallback is needed; llama.cpp has no other way")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    kinds = {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in state["added_tokens"]}
    pieces = []
    for token_id in range(backend.vocab_size):
        piece = backend.piece(token_id)
        if piece is None:
            pieces.append(Piece(unused_token(token_id), 0.0, UNUSED))
            continue
        kind = kinds.get(token_id, BYTE if _BYTE_PIECE.fullmatch(piece) else NORMAL)
        if piece == model.get("unk_token"):
            kind = UNKNOWN
        pieces.append(Piece(piece, -float(ranks.get(piece, len(merges) + token_id)), kind))
    if set(merges) != set(merges_by_score(pieces)):
        raise ExportError(
            f"{name}: llama.cpp merges any two pieces that form a third, and this tokenizer.json "
            "lists other merges; give the folder its tokenizer.model"
        )
    return pieces


def _metadata(
    pieces: Sequence[Piece], add_prefix: bool, backend: Backend, name: str
) -> tuple[Metadata, list[str]]:
    if sum(piece.kind == BYTE for piece in pieces) != _NUM_BYTES:
        raise ExportError(
            f"{name}: it has no piece for each byte; llama.cpp stops at a character without piece"
        )
    spelled = [_spelled(piece) for piece in pieces]
    stuck: list[str] = []
    if add_prefix:
        spelled, stuck = _as_normal_where_equal(spelled, backend)
    unknown = next((i for i, piece in enumerate(spelled) if piece.kind == UNKNOWN), None)
    found: Metadata = {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.tokens": Value("string", [piece.text for piece in spelled]),
        "tokenizer.ggml.scores": Value("f32", [piece.score for piece in spelled]),
        "tokenizer.ggml.token_type": Value("i32", [piece.kind for piece in spelled]),
        "tokenizer.ggml.add_space_prefix": Value("bool", add_prefix),
        "tokenizer.ggml.remove_extra_whitespaces": Value("bool", False),
    }
    if unknown is not None:
        found["tokenizer.ggml.unknown_token_id"] = u32(unknown)
    return found, stuck


def _spelled(piece: Piece) -> Piece:
    """llama.cpp looks for user-defined tokens in text whose spaces are not marked yet."""
    if piece.kind != USER_DEFINED:
        return piece
    return replace(piece, text=piece.text.replace(SPACE_MARK, " "))


def _as_normal_where_equal(pieces: list[Piece], backend: Backend) -> tuple[list[Piece], list[str]]:
    """User-defined pieces typed as normal ones wherever only then llama.cpp gives the right ids.

    It puts a space after a user-defined token in the middle of a text, which SentencePiece does
    not. A piece that merging can reach needs no such type.

    Returns:
        the pieces, and the texts of those that are right in neither way.
    """
    rules = _rules(pieces)
    own = [i for i, p in enumerate(pieces) if p.kind == USER_DEFINED]
    wrong = [i for i in own if not _is_equal(rules, backend, pieces[i].text)]
    best = max((piece.score for piece in pieces), default=0.0)
    changed, tried = list(pieces), set(wrong)
    for i in wrong:
        marked = pieces[i].text.replace(" ", SPACE_MARK)
        changed[i] = Piece(marked, best + len(marked), NORMAL)
    # One piece that goes back may take a merge away from another, so until none has to.
    while True:
        rules = _rules(changed)
        failed = [i for i in tried if not _is_equal(rules, backend, pieces[i].text)]
        if not failed:
            return changed, [pieces[i].text for i in wrong if i not in tried]
        for i in failed:
            changed[i] = pieces[i]
        tried.difference_update(failed)


def _rules(pieces: Sequence[Piece]) -> SpmRules:
    texts, scores, kinds = zip(*((p.text, p.score, p.kind) for p in pieces), strict=True)
    return SpmRules(texts, scores, kinds, add_space_prefix=True)


def rules_of(found: Metadata) -> SpmRules:
    """llama.cpp's tokenizer over the keys of a "llama" vocabulary."""
    tokens, scores, kinds = (
        found[f"tokenizer.ggml.{key}"].data for key in ("tokens", "scores", "token_type")
    )
    return SpmRules(tokens, scores, kinds, found["tokenizer.ggml.add_space_prefix"].data)


def _is_equal(rules: SpmRules, backend: Backend, piece: str) -> bool:
    probes = (piece, f"a{piece}b", f"{piece * 3} c", f" {piece} ", f"x {piece}the", f"1{piece}2")
    return all(rules.encode(p, False) == backend.encode(p, False) for p in probes)
