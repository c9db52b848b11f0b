"""A SentencePiece BPE model as a `tokenizer.json` that gives the same ids.

SentencePiece does four things that have to be spelled out for the `tokenizers` library: the dummy
prefix (a normalizer, so that it also goes before a text that starts with a space), user-defined
pieces (cut out first and taken whole), merges by score, and unknown characters as byte pieces.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from bcquant.errors import ExportError
from bcquant.runtime.hard_texts import HARD_TEXTS
from bcquant.runtime.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Piece,
    is_bpe,
    read_normalizer,
    read_pieces,
)
from bcquant.runtime.token_backends import SPACE_MARK, SentencePieceBackend

if TYPE_CHECKING:
    from tokenizers import Tokenizer, normalizers


# A mark in the text beside a space: both are marks to SentencePiece. llama.cpp cuts pieces with
# spaces out of the raw text before that, so its export is not held to this one.
_MARK_TEXT = "def f(x):\n    return x ** 2  # \u2581 mark"


def convert_sentencepiece(backend: SentencePieceBackend, name: str) -> Tokenizer:
    """Build the equivalent `tokenizers.Tokenizer`, without a post-processor, and check its ids.

    Raises:
        ExportError: the model is not BPE, its normalizer has no equivalent, or ids differ on a
            probe.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    if not is_bpe(backend.proto, name):
        raise ExportError(
            f"{name}: a SentencePiece model of a kind other than BPE cannot become a "
            "tokenizer.json here"
        )
    pieces = read_pieces(backend.proto, name)
    whole = [p.text for p in pieces if p.kind == USER_DEFINED]
    unknown = next((p.text for p in pieces if p.kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={p.text: i for i, p in enumerate(pieces)},
            merges=merges_by_score(pieces),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=any(p.kind == BYTE for p in pieces),
            ignore_merges=bool(whole),
        )
    )
    normalizer = read_normalizer(backend.proto, name)
    tokenizer.normalizer = _normalizer(
        normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces
    )
    if normalizer.charsmap:
        raise ExportError(
            f"{name}: its text normalization (not 'identity') cannot be put into a tokenizer.json "
            "here"
        )
    if whole:
        longest_first = "|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(longest_first), behavior="isolated")
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if backend.strips_prefix else steps
    )
    special = [p.text for p in pieces if p.kind in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in special]
    )
    for token_id, token in sorted(backend.added.items()):
        tokenizer.add_tokens([AddedToken(token.text, normalized=False, special=token.is_special)])
        if tokenizer.token_to_id(token.text) != token_id:
            raise ExportError(
                f"{name}: the added token {token.text!r} has id {token_id}, but ids beside the "
                "vocabulary of "
                f"{len(pieces)} must follow it without a gap"
            )
    _check_ids(tokenizer, backend, name, itertools.chain((*HARD_TEXTS, _MARK_TEXT), whole))
    return tokenizer


def merges_by_score(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to make a normal piece from two others, the best score first."""
    ids = {p.text: i for i, p in enumerate(pieces) if p.kind == NORMAL}
    found: list[tuple[float, int, int, int]] = []
    for text, token_id in ids.items():
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                found.append((-pieces[token_id].score, token_id, left, right))
    found.sort()
    return [(pieces[left].text, pieces[right].text) for _, _, left, right in found]


def _normalizer(add_dummy_prefix: bool, squeeze: bool) -> normalizers.Normalizer:
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if squeeze:
        # Only the space itself: SentencePiece's identity rule keeps tabs and line ends. At the end
        # it looks at escaped text, where a literal mark is a space too.
        steps += [
            normalizers.Replace(Regex(rf"\A +|[ {SPACE_MARK}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE_MARK)])


def _check_ids(
    tokenizer: Tokenizer, backend: SentencePieceBackend, name: str, probes: Iterable[str]
) -> None:
    for probe in probes:
        wanted = backend.encode(probe, parse_special=True)
        got = tokenizer.encode(probe, add_special_tokens=False).ids
        if got != wanted:
            raise ExportError(
                f"{name}: as tokenizer.json it gives {got[:20]} for {probe!r} where "
                f"SentencePiece gives {wanted[:20]}; report this model to bcquant"
            )
