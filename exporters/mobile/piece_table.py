"""A SentencePiece BPE model, with the tokens added beside it, as a token table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bcquant.errors import ExportError
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
from bcquant.runtime.token_backends import AddedToken, SentencePieceBackend

from .token_table import (
    ADDED,
    BYTE_FALLBACK,
    DUMMY_PREFIX,
    NONE,
    SENTENCEPIECE,
    SQUEEZE,
    TokenTable,
)

_NUM_BYTES = 256


def piece_table(backend: SentencePieceBackend, name: str) -> TokenTable:
    """Pieces, scores and types of every id.

    Args:
        name: what to call the tokenizer in an error.
    Raises:
        ExportError: another kind than BPE, a normalization, or pieces that SentencePiece treats in
            a way that the section cannot say.
    """
    if not is_bpe(backend.proto, name):
        raise ExportError(f"{name}: a SentencePiece model of another kind than BPE; BPE is needed")
    normalizer = read_normalizer(backend.proto, name)
    if normalizer.charsmap:
        raise ExportError(
            f"{name}: it normalizes text by a table of its own before cutting it; a package has no "
            "room for one"
        )
    pieces = read_pieces(backend.proto, name)
    squeezes = normalizer.remove_extra_whitespaces
    _check_pieces(pieces, squeezes, name)
    pieces += _added_pieces(backend.added, len(pieces), name)
    _check_cut(pieces, name)
    kinds = [piece.kind for piece in pieces]
    return TokenTable(
        kind=SENTENCEPIECE,
        bits=(
            (DUMMY_PREFIX if normalizer.add_dummy_prefix else 0)
            | (SQUEEZE if squeezes else 0)
            | (BYTE_FALLBACK if BYTE in kinds else 0)
        ),
        split_rule=0,
        texts=[piece.text.encode() for piece in pieces],
        types=kinds,
        scores=[piece.score for piece in pieces],
        merges=(),
        unknown=kinds.index(UNKNOWN) if UNKNOWN in kinds else NONE,
    )


def _check_pieces(pieces: Sequence[Piece], squeezes: bool, name: str) -> None:
    """SentencePiece's own rules for odd pieces, which the section does not have."""
    matched = {p.text for p in pieces if p.kind in (NORMAL, USER_DEFINED, UNUSED)}
    num_bytes = sum(piece.kind == BYTE for piece in pieces)
    if num_bytes not in (0, _NUM_BYTES):
        raise ExportError(f"{name}: it has {num_bytes} byte pieces; none or all 256 are needed")
    for piece in pieces:
        wrong: str | None = None
        if piece.score != piece.score:
            wrong = "a score that is not a number"
        elif piece.kind in (CONTROL, UNKNOWN, BYTE):
            if len(piece.text) == 1 or piece.text in matched:
                wrong = "a special kind and can be met in text all the same"
        elif piece.kind == UNUSED and _can_be_made(piece.text, matched):
            wrong = "the kind 'unused' and can be met in text all the same"
        elif piece.kind == USER_DEFINED and (
            "\0" in piece.text or (squeezes and " " in piece.text)
        ):
            wrong = "a zero byte or a plain space in it, where this model removes extra spaces"
        if wrong is not None:
            raise ExportError(
                f"{name}: the piece {piece.text!r} has {wrong}; a package cannot say that"
            )


def _can_be_made(text: str, matched: set[str]) -> bool:
    """Whether some two symbols, single characters or pieces, join to this text."""
    if len(text) < 2:
        return bool(text)
    return any(
        all(len(part) == 1 or part in matched for part in (text[:cut], text[cut:]))
        for cut in range(1, len(text))
    )


def _added_pieces(added: Mapping[int, AddedToken], first: int, name: str) -> list[Piece]:
    """What follows the model's pieces; ids between that nothing names are unused."""
    pieces = []
    for token_id in range(first, max(added, default=-1) + 1):
        token = added.get(token_id)
        if token is None:
            pieces.append(Piece("", 0.0, UNUSED))
        else:
            pieces.append(Piece(token.text, 0.0, CONTROL if token.is_special else ADDED))
    if any(token_id < first for token_id in added):
        raise ExportError(f"{name}: an added token takes the id of one of its {first} pieces")
    return pieces


def _check_cut(pieces: Sequence[Piece], name: str) -> None:
    seen: set[str] = set()
    for piece in pieces:
        if piece.kind in (CONTROL, UNKNOWN, ADDED) and piece.text:
            if piece.text in seen:
                raise ExportError(f"{name}: two special tokens are spelled {piece.text!r}")
            seen.add(piece.text)
