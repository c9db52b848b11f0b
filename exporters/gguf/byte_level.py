"""A byte-level BPE `tokenizer.json` as GGUF's "gpt2" vocabulary.

llama.cpp cuts text by rules that it knows under a name (`tokenizer.ggml.pre`), so a tokenizer can
only be exported if one of those names means its own rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.errors import ExportError
from bcquant.runtime.gguf_tokenizer import SPLITS
from bcquant.runtime.sentencepiece_proto import CONTROL, NORMAL, UNUSED, USER_DEFINED
from bcquant.runtime.token_backends import TokenizersBackend

from .._text_steps import split_steps
from .file import Metadata, Value, text

# Names whose rules llama.cpp has too, with what else they stand for: does a word of the vocabulary
# win over its merges, and does our reader put text into NFC first (llama.cpp never does). Left
# out are "tekken" and "gpt-4o": llama.cpp approximates their letter case by a-z and A-Z.
_NAMES: tuple[tuple[str, bool, bool], ...] = (
    ("gpt-2", False, False),
    ("smollm", False, False),
    ("llama-bpe", True, False),
    ("dbrx", False, False),
    ("qwen2", False, True),
    ("stablelm2", False, False),
)
# What has to be off or empty: llama.cpp has none of it.
_PLAIN_MODEL = (
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
)


def is_byte_level(state: Mapping[str, Any]) -> bool:
    """Whether tokens of a `tokenizer.json` spell bytes; the others mark spaces."""
    decoder = state.get("decoder") or {}
    return any(d.get("type") == "ByteLevel" for d in decoder.get("decoders", [decoder]))


def uses_nfc(state: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` puts text into NFC, which llama.cpp never does."""
    return (state.get("normalizer") or {}).get("type") == "NFC"


def byte_level_metadata(
    backend: TokenizersBackend, state: Mapping[str, Any], name: str
) -> Metadata:
    """Tokens, types, merges and the name of the rules.

    Args:
        state: the parsed `tokenizer.json`.
        name: what to call the file in an error.
    Raises:
        ExportError: a rule of the tokenizer is not one of llama.cpp's.
    """
    model = state["model"]
    _check_model(model, name)
    is_nfc = uses_nfc(state)
    if state.get("normalizer") and not is_nfc:
        raise ExportError(
            f"{name}: its normalizer is {state['normalizer'].get('type')!r}; llama.cpp changes no "
            "text before byte-level BPE"
        )
    splits = _splits(state, name)
    pre = _name_of(splits, bool(model.get("ignore_merges")), is_nfc, name)
    tokens, kinds = _tokens(backend, state, name)
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(pre),
        "tokenizer.ggml.tokens": Value("string", tokens),
        "tokenizer.ggml.token_type": Value("i32", kinds),
        "tokenizer.ggml.merges": Value("string", _merges(model, name)),
    }


def _check_model(model: Mapping[str, Any], name: str) -> None:
    if model.get("type") != "BPE":
        raise ExportError(
            f"{name}: a tokenizer of type {model.get('type')!r}; GGUF export takes byte-level BPE "
            "and SentencePiece BPE"
        )
    used = [key for key in _PLAIN_MODEL if model.get(key)]
    if used:
        raise ExportError(f"{name}: its BPE uses {', '.join(used)}, which llama.cpp does not have")


def _splits(state: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The expressions that cut a text, one after the other."""
    found, kinds = split_steps(state, r"\p{N}", name, "unknown to llama.cpp")
    if kinds[-1:] != ["ByteLevel"]:
        raise ExportError(f"{name}: its pre-tokenizer does not end in ByteLevel, as llama.cpp's do")
    return found


def _name_of(splits: tuple[str, ...], ignore_merges: bool, is_nfc: bool, name: str) -> str:
    for pre, *rules in _NAMES:
        if (SPLITS[pre], rules) == (splits, [ignore_merges, is_nfc]):
            return pre
    raise ExportError(
        f"{name}: it cuts text by {list(splits)} (ignore_merges {ignore_merges}, NFC {is_nfc}); "
        "llama.cpp has no tokenizer.ggml.pre with exactly these rules"
    )


def _tokens(
    backend: TokenizersBackend, state: Mapping[str, Any], name: str
) -> tuple[list[str], list[int]]:
    """Every id's text and type; an id that nothing names becomes an unused token."""
    tokens, kinds = [], []
    for token_id in range(backend.vocab_size):
        piece = backend.piece(token_id)
        tokens.append(unused_token(token_id) if piece is None else piece)
        kinds.append(UNUSED if piece is None else NORMAL)
    for added in state.get("added_tokens", []):
        strips = [rule for rule in ("lstrip", "rstrip", "single_word") if added.get(rule)]
        if strips:
            raise ExportError(
                f"{name}: the token {added['content']!r} asks for {', '.join(strips)}, which GGUF "
                "cannot say"
            )
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def unused_token(token_id: int) -> str:
    """What stands in the vocabulary for an id that the tokenizer never makes."""
    return f"[PAD{token_id}]"


def _merges(model: Mapping[str, Any], name: str) -> list[str]:
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    for merge in merges:
        if len(merge) != 2 or any(" " in part for part in merge):
            raise ExportError(f"{name}: the merge {merge!r} has a space in it; GGUF cannot hold it")
    return [" ".join(merge) for merge in merges]
