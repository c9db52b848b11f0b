"""What a BPE `tokenizer.json` says whatever its symbols are: its model, merges and added tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.errors import ExportError
from bcquant.runtime.sentencepiece_proto import CONTROL, NORMAL, UNUSED, USER_DEFINED
from bcquant.runtime.token_backends import TokenizersBackend

Json = Mapping[str, Any]

_PLAIN_MODEL = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def check_model(state: Json, name: str) -> None:
    """Refuse what no kind of section can say.

    Args:
        state: the parsed `tokenizer.json`.
        name: what to call the tokenizer in an error.
    Raises:
        ExportError: another model than BPE, or a setting of it or of an added token.
    """
    model = state["model"]
    if model.get("type") != "BPE":
        raise ExportError(
            f"{name}: a tokenizer of type {model.get('type')!r}; a package takes byte-level BPE "
            "and SentencePiece BPE"
        )
    used = [key for key in _PLAIN_MODEL if model.get(key)]
    if used:
        raise ExportError(f"{name}: its BPE uses {', '.join(used)}, which a package cannot say")
    if len(set(model["vocab"].values())) != len(model["vocab"]):
        raise ExportError(f"{name}: two entries of its vocabulary have the same id")
    _check_added(state, name)


def _check_added(state: Json, name: str) -> None:
    """Added tokens are matched in one pass, from raw text, by nothing but their spelling."""
    added = [token for token in state["added_tokens"] if token["content"]]
    for token in added:
        strips = [rule for rule in ("lstrip", "rstrip", "single_word") if token.get(rule)]
        if strips:
            raise ExportError(
                f"{name}: the token {token['content']!r} asks for {', '.join(strips)}, which a "
                "package cannot say"
            )
    late = [token["content"] for token in added if token.get("normalized")]
    early = [token["content"] for token in added if not token.get("normalized")]
    if late and state.get("normalizer"):
        raise ExportError(
            f"{name}: the token {late[0]!r} is looked for in normalized text ('normalized'), which "
            "a package cannot say"
        )
    # The library looks for all of one sort before the others; that matters where two overlap.
    clash = next(((a, b) for a in late for b in early if _overlap(a, b)), None)
    if clash is not None:
        raise ExportError(
            f"{name}: the tokens {clash[0]!r} and {clash[1]!r} can overlap in a text and differ in "
            "'normalized', which a package cannot say"
        )


def _overlap(a: str, b: str) -> bool:
    """Whether a text can hold both at places that share a character."""
    if a in b or b in a:
        return True
    sizes = range(1, min(len(a), len(b)))
    return any(a[-n:] == b[:n] or b[-n:] == a[:n] for n in sizes)


def read_types(backend: TokenizersBackend, state: Json) -> tuple[list[str], list[int]]:
    """Spelling and type of every id; one that nothing names is an unused token."""
    pieces, kinds = [], []
    for token_id in range(backend.vocab_size):
        piece = backend.piece(token_id)
        pieces.append(piece or "")
        kinds.append(NORMAL if piece else UNUSED)
    for token in state["added_tokens"]:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return pieces, kinds


def read_pairs(model: Json) -> list[tuple[str, str]]:
    """The two sides of each merge, the earliest first."""
    halves = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return [(left, right) for left, right in halves]


def merge_ids(model: Json, reachable: set[str]) -> list[tuple[int, int]]:
    """Ids of each merge whose sides are tokens of `reachable`."""
    vocab = model["vocab"]
    pairs = read_pairs(model)
    return [(vocab[a], vocab[b]) for a, b in pairs if a in reachable and b in reachable]
