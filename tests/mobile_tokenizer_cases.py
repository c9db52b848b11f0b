"""Tokenizers of every kind that a package can hold, and texts on which encoders disagree."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tiny_tokenizers as tiny
from tokenizers import AddedToken as RustToken
from tokenizers import Tokenizer as RustTokenizer

from bcquant.runtime.gguf_tokenizer import SPLITS
from bcquant.runtime.sentencepiece_proto import (
    BYTE,
    CONTROL,
    Normalizer,
    Piece,
    SpecialIds,
    read_pieces,
    write_bpe_model,
)
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer
from bcquant.runtime.token_backends import AddedToken, SentencePieceBackend, byte_alphabet
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer

SMOLLM = Path.home() / ".cache" / "bcquant" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_POOL = (
    "  \n\r\t'sStTrReElLvVmMdD\u017f.,=-_12\u0663a\u00e9\u0301\u4f60\u597d\u2581\u3000\u00a0\u2047"
    "\U0001f600\U00011de5\U00011de6\u0938\u093f<>/u|=\u0085\u200b"
)
# Characters in several normal forms, and what changes only by its neighbours.
_MARKED_POOL = (
    "eedD \u0301\u0323\u0307\u0308\u0345\u00e9\u1e0b\u1ebb\u1112\u1161\u11ab\uac00\u11a8\u212b"
    "\u2126\u0958\u0915\u093c\u09c7\u09be\uf900\U0002f800\ufb1d\u0344\U0001d15e\U0001f469\u200d\ufe0f\u3046\u3099>"
)


def _glue(state: dict[str, Any]) -> None:
    """Merges for pairs of bytes of the pool: a word cut in a wrong place then has other ids."""
    model, stand_in = state["model"], {byte: c for c, byte in byte_alphabet().items()}
    data = "".join(random.Random(3).choices(_POOL, k=3000)).encode()
    pairs = dict.fromkeys((stand_in[a], stand_in[b]) for a, b in itertools.pairwise(data))
    pairs = {(stand_in[0xBF], "a"): None, **pairs}  # the end of the long s, which is an s in "'s"
    first = len(model["vocab"])
    fresh = [pair for pair in pairs if "".join(pair) not in model["vocab"]]
    model["vocab"].update({"".join(pair): first + i for i, pair in enumerate(fresh)})
    model["merges"] += [list(pair) for pair in fresh]
    for word in ("\u0120<u", "\u0120===", "\u0120<=>"):  # no merge makes these
        model["vocab"].setdefault(word, len(model["vocab"]))


def _bytes(kind: str, *added: str | RustToken) -> Callable[[Path], Tokenizer]:
    return lambda folder: edited(folder, kind, _glue, added)


def edited(
    folder: Path,
    kind: str,
    edit: Callable[[dict[str, Any]], None],
    added: tuple[str | RustToken, ...] = (),
) -> Tokenizer:
    """A byte-level tokenizer whose tokenizer.json was changed by hand, then given more tokens."""
    file = tiny.byte_level_folder(folder, kind) / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    edit(state)
    file.write_text(json.dumps(state), encoding="utf-8")
    made = RustTokenizer.from_file(str(file))
    made.add_tokens(list(added))
    made.save(str(file))
    return open_tokenizer(folder)


def _qwen2(normalizer: dict[str, str] | None = None) -> Callable[[Path], Tokenizer]:
    def edit(state: dict[str, Any]) -> None:
        _glue(state)
        state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = SPLITS["qwen2"][0]
        state["normalizer"] = normalizer
        if normalizer is not None:
            _spare_marks(state)

    added = (*_OVERLAPPING, *_MARKED) if normalizer is not None else ()
    return lambda folder: edited(folder, "llama3", edit, added)


def _spare_marks(state: dict[str, Any]) -> None:
    """Characters with marks are words, whole and in parts: another form then has other ids."""
    stand_in = {byte: c for c, byte in byte_alphabet().items()}
    vocab = state["model"]["vocab"]
    for text in ("\u00e9", "e\u0301", "\u1ebb", "\uac01", "\u212b", "\u0915\u093c", "\u1e0d\u0307"):
        vocab.setdefault("".join(stand_in[byte] for byte in text.encode()), len(vocab))


def _without_a_byte(unknown: str | None) -> Callable[[Path], Tokenizer]:
    """The first byte of many Chinese characters has no token."""

    def edit(state: dict[str, Any]) -> None:
        model, byte = state["model"], "\u00e4"
        model["vocab"]["never met \u4f60"] = model["vocab"].pop(byte)
        is_left = [not any(byte in part for part in pair) for pair in model["merges"]]
        model["merges"] = [m for m, keep in zip(model["merges"], is_left, strict=True) if keep]
        model["unk_token"] = unknown

    return lambda folder: edited(folder, "gpt2", edit)


def _pieces(**training: Any) -> Callable[[Path], Tokenizer]:
    return lambda folder: open_tokenizer(tiny.sentencepiece_folder(folder, **training))


def _as_json(**training: Any) -> Callable[[Path], Tokenizer]:
    """The same as a tokenizer.json: BPE over characters."""

    def make(folder: Path) -> Tokenizer:
        source = tiny.sentencepiece_folder(folder, **training)
        target = folder.with_name(f"{folder.name}_json")
        export_tokenizer(source, target)
        (target / "tokenizer.model").unlink()
        return open_tokenizer(target)

    return make


def _json_without_bytes(folder: Path) -> Tokenizer:
    target = folder.with_name(f"{folder.name}_json")
    _as_json()(folder)
    file = target / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["model"]["byte_fallback"] = False
    file.write_text(json.dumps(state), encoding="utf-8")
    return open_tokenizer(target)


def _metaspace(
    scheme: str, split: bool, bytes_too: bool = True, nfc: bool = False, **added: bool
) -> Callable[[Path], Tokenizer]:
    """BPE over characters with a Metaspace in the place of normalizers, or behind NFC."""

    def make(folder: Path) -> Tokenizer:
        target = folder.with_name(f"{folder.name}_json")
        _as_json(user_defined_symbols=["\u2581\u2581", "a\u2581", "x\u2581y"])(folder)
        file = target / "tokenizer.json"
        state = json.loads(file.read_text(encoding="utf-8"))
        state["added_tokens"] = [t for t in state["added_tokens"] if t["special"]]
        state["normalizer"] = {"type": "NFC"} if nfc else None
        state["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split
        }  # fmt: skip
        state["model"] |= {"byte_fallback": bytes_too, "ignore_merges": False}
        steps = state["decoder"]["decoders"]
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
        kept = [step for step in steps if step["type"] != "Strip"]
        state["decoder"]["decoders"] = kept + (strip if scheme != "never" else [])
        _merge_over_marks(state)
        file.write_text(json.dumps(state), encoding="utf-8")
        made = RustTokenizer.from_file(str(file))
        made.add_tokens([RustToken("==", **added)])
        made.save(str(file))
        return open_tokenizer(target)

    return make


def _merge_over_marks(state: dict[str, Any]) -> None:
    """Merges of a letter and the mark behind it, which words that begin with marks never use."""
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    for left, right in (("a", "\u2581"), ("\u2581", "\u2581"), ("e", "\u2581"), (".", "\u2581")):
        vocab.setdefault(left + right, len(vocab) + 50)
        merges.insert(0, [left, right])


def _rebuilt_pieces(
    folder: Path,
    change: Callable[[list[Piece]], list[Piece]],
    added: dict[int, AddedToken] | None = None,
) -> Tokenizer:
    proto = (tiny.sentencepiece_folder(folder) / "tokenizer.model").read_bytes()
    pieces = change(read_pieces(proto, "tiny"))
    made = write_bpe_model(pieces, SpecialIds(), Normalizer(True, False))
    return Tokenizer(SentencePieceBackend(made, "tiny", added), SpecialTokens())


def _pieces_without_bytes(folder: Path) -> Tokenizer:
    return _rebuilt_pieces(folder, lambda pieces: [p for p in pieces if p.kind != BYTE])


def _equal_scores(folder: Path) -> Tokenizer:
    """Only the place decides which pair is merged."""
    return _rebuilt_pieces(folder, lambda pieces: [Piece(p.text, -1.0, p.kind) for p in pieces])


def _added_pieces(folder: Path) -> Tokenizer:
    added = {380: AddedToken("<u1>", False), 383: AddedToken("<u12>", True)}
    return _rebuilt_pieces(
        folder, lambda pieces: [*pieces[:379], Piece("[INST] ", 0.0, CONTROL)], added
    )


# What is found within a special token that stays text: nothing.
_OVERLAPPING = (
    RustToken("<==>", special=True, normalized=False),
    *(RustToken(text, normalized=False) for text in ("==", "===", "<u1>", "=>")),
)
# Spelled with marks: looked for in the text as it is, before any normalization.
_MARKED = (
    RustToken("<e\u0301>", normalized=False),
    RustToken("\u212b|", special=True, normalized=False),
)
MARKS = [*tiny.USER_DEFINED, "\u2581\u2581", "==="]
CASES: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt2": _bytes("gpt2", "<u1>", "<u12>", "==", "==="),
    "digits_step": _bytes("single_digits"),
    "digits_expression": _bytes("two_splits"),
    "llama3": _bytes("llama3", *_OVERLAPPING),
    "qwen2": _qwen2(),
    "qwen2_nfc": _qwen2({"type": "NFC"}),
    "byte_missing": _without_a_byte(None),
    "byte_unknown": _without_a_byte("<pad>"),
    "pieces": _pieces(),
    "pieces_no_prefix": _pieces(add_dummy_prefix=False, user_defined_symbols=MARKS),
    "pieces_squeezed": _pieces(remove_extra_whitespaces=True, user_defined_symbols=MARKS),
    "pieces_user_defined": _pieces(user_defined_symbols=MARKS),
    "pieces_no_bytes": _pieces_without_bytes,
    "pieces_equal_scores": _equal_scores,
    "pieces_added": _added_pieces,
    "characters": _as_json(),
    "characters_no_prefix": _as_json(add_dummy_prefix=False),
    "characters_no_bytes": _json_without_bytes,
    "metaspace_always": _metaspace("always", True, False, normalized=True),
    "metaspace_first": _metaspace("first", False, normalized=False),
    "metaspace_first_nfc": _metaspace("first", True, nfc=True, normalized=False),
    "metaspace_never": _metaspace("never", True, False, normalized=True),
}


@cache
def texts(num: int) -> list[str]:
    """Slices of prose, hostile mixtures, random Unicode, special tokens, broken bytes; the same
    ones in every run."""
    from pydoc_data.topics import topics

    source = random.Random(5)
    corpus = "\n".join(topics[key] for key in sorted(topics))
    special = ["<s>", "</s>", "<pad>", "<unk>", "[INST] ", "<|im_start|>", "<|im_end|>",
               "<|endoftext|>", "<==>", "===", *tiny.USER_DEFINED, *tiny.TEXTS, " ", "  ",
               "a", "y'\u017fa", " <u", " <=>", "<e\u0301>", "\u212b|"]  # fmt: skip
    ranges = ((0, 128), (0, 0x3000), (0, 0xD800), (0xE000, 0x110000))

    def prose() -> str:
        begin = source.randrange(len(corpus) - 60)
        return corpus[begin : begin + source.randrange(60)]

    def any_of(choices: Any, most: int) -> str:
        return "".join(source.choices(choices, k=source.randrange(most)))

    def unicode_text() -> str:
        return "".join(chr(source.randrange(*source.choice(ranges))) for _ in range(8))

    def broken() -> str:
        return source.randbytes(source.randrange(12)).decode("utf-8", "replace")

    def marked() -> str:
        parts = (any_of(_MARKED_POOL, 12), any_of(special, 3), any_of(_MARKED_POOL, 6))
        return "".join(source.sample(parts, 3))

    makers = (
        prose,
        lambda: any_of(_POOL, 20),
        unicode_text,
        lambda: any_of(special, 5),
        broken,
        marked,
    )
    return [makers[i % len(makers)]() for i in range(num)]
