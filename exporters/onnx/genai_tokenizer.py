"""A tokenizer.json in the spelling that onnxruntime-genai reads as it was meant.

Measured with version 0.18 against the `tokenizers` library, on texts in several scripts, with
spaces, line ends and special tokens. What genai reads right: byte-level BPE with Split patterns,
digits or GPT-2's pattern; SentencePiece BPE with or without a dummy prefix as a Prepend normalizer.
What it passes over in silence: NFC and regular expressions as normalizers, the space before a text
that ByteLevel adds, ByteLevel's own pattern after a Split, marks of added tokens. Patterns that
spell characters beyond ASCII make it fail. Known and rare: where a pattern has `\\s*[\\r\\n]+`, a
text of nothing but spaces around a line end is cut in another place.
"""

from __future__ import annotations

import re
from typing import Any

from bcquant.errors import ExportError

Json = dict[str, Any]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_NORMALIZERS = {*_FORMS, "Prepend", "Replace"}


def adapt_tokenizer(tokenizer: Json, name: str) -> tuple[Json | None, tuple[str, ...]]:
    """What to write instead of a tokenizer.json, and how its ids differ all the same.

    Args:
        tokenizer: parsed tokenizer.json; not changed.
        name: of the model, for messages.
    Returns:
        the changed file, None if it is right as it is, and one sentence for each kind of text
        whose ids differ.
    Raises:
        ExportError: ordinary text would get other ids.
    """
    adapted = _user_defined_as_added(tokenizer) or _own_pattern_as_split(tokenizer)
    seen = adapted or tokenizer
    _refuse_unknown(seen, name)
    return adapted, tuple(_differences(tokenizer, seen))


def _user_defined_as_added(tokenizer: Json) -> Json | None:
    """User-defined pieces of SentencePiece as added tokens instead of a Split on them.

    genai cuts at a Split's pattern, but merges nothing any more when it has no ByteLevel after it.
    """
    split = tokenizer.get("pre_tokenizer")
    model = tokenizer["model"]
    if not model.get("byte_fallback") or not split or split["type"] != "Split":
        return None
    pieces = [re.sub(r"\\(.)", r"\1", part) for part in _alternatives(split)]
    if not all(piece in model["vocab"] for piece in pieces):
        return None
    rules = {"single_word": False, "lstrip": False, "rstrip": False}
    added = [
        {"id": model["vocab"][piece], "content": piece, **rules, "normalized": False,
         "special": False}
        for piece in pieces
    ]  # fmt: skip
    return {
        **tokenizer,
        "pre_tokenizer": None,
        "added_tokens": sorted([*tokenizer["added_tokens"], *added], key=lambda t: t["id"]),
        "model": {**model, "ignore_merges": False},
    }


def _own_pattern_as_split(tokenizer: Json) -> Json | None:
    """ByteLevel's pattern as one more Split, where genai would not apply it after another."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if kinds[-1:] != ["ByteLevel"] or "Split" not in kinds or not steps[-1].get("use_regex", True):
        return None
    split = {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    steps = [*steps[:-1], split, {**steps[-1], "use_regex": False}]
    return {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def _alternatives(split: Json) -> list[str]:
    """Literals of a pattern `a|b|c`, escapes kept."""
    return re.findall(r"(?:\\.|[^|\\])+", split["pattern"].get("Regex", ""), re.DOTALL)


def _steps(part: Json | None, key: str) -> list[Json]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in _steps(inner, key)]
    return [part]


def _refuse_unknown(tokenizer: Json, name: str) -> None:
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    wrong: str | None = None
    if tokenizer["model"]["type"] != "BPE":
        wrong = f"a {tokenizer['model']['type']} model"
    elif unknown := sorted(set(kinds) - {"ByteLevel", "Split", "Digits", "Metaspace"}):
        wrong = f"the pre-tokenizer {', '.join(unknown)}"
    elif any(step.get("add_prefix_space") for step in steps if step["type"] == "ByteLevel"):
        wrong = "a ByteLevel that puts a space before each text"
    elif any(not str(step["pattern"]).isascii() for step in steps if step["type"] == "Split"):
        wrong = "a Split pattern with characters beyond ASCII"
    elif "Split" not in kinds and "ByteLevel" in kinds and not steps[-1].get("use_regex", True):
        wrong = "a ByteLevel that does not split words"
    elif steps and not tokenizer["model"].get("byte_fallback") and "ByteLevel" not in kinds:
        wrong = "pre-tokenizers without a ByteLevel"
    elif "Split" in kinds and tokenizer["model"].get("byte_fallback"):
        wrong = "a Split in a SentencePiece model"
    elif any(step["behavior"] != "Isolated" for step in steps if step["type"] == "Split"):
        wrong = "a Split that does not keep both parts"
    elif any(not _is_readable(step) for step in steps if step["type"] == "Metaspace"):
        wrong = "a Metaspace that splits, or never puts a space before a text"
    elif unknown := sorted(set(_normalizers(tokenizer)) - _NORMALIZERS):
        wrong = f"the normalizer {', '.join(unknown)}"
    if wrong is not None:
        raise ExportError(
            f"{name}: its tokenizer has {wrong}, which onnxruntime-genai reads as something else "
            "or not at all; use --target cpu and this model's own tokenizer"
        )


def _is_readable(metaspace: Json) -> bool:
    return metaspace.get("split") is False and metaspace.get("prepend_scheme") != "never"


def _normalizers(tokenizer: Json) -> list[str]:
    return [step["type"] for step in _steps(tokenizer.get("normalizer"), "normalizers")]


def _differences(before: Json, tokenizer: Json) -> list[str]:
    """Texts that get other ids in onnxruntime-genai."""
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    kinds = _normalizers(tokenizer)
    found = []
    forms = [kind for kind in kinds if kind in _FORMS]
    if forms:
        found.append(
            f"onnxruntime-genai does not normalize to {forms[0]}: hand it text that is normalized"
        )
    if any("Regex" in step["pattern"] for step in normalizers if step["type"] == "Replace"):
        found.append("onnxruntime-genai keeps runs of spaces that this tokenizer makes one space")
    if len(tokenizer["added_tokens"]) > len(before["added_tokens"]) and "Prepend" in kinds:
        found.append(
            "beside a user-defined piece in a text onnxruntime-genai puts a space that this "
            "tokenizer does not"
        )
    for step in _steps(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            found.append(
                "onnxruntime-genai puts a space before every text and after every special token, "
                "this tokenizer only before a text that does not begin with one"
            )
    strict = [
        token["content"]
        for token in tokenizer["added_tokens"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]
    ]
    if strict:
        found.append(f"onnxruntime-genai does not take the spaces around {', '.join(strict)} away")
    return found
