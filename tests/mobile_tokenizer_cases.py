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


def _qwen2(folder: Path) -> Tokenizer:
    def edit(state: dict[str, Any]) -> None:
        _glue(state)
        state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = SPLITS["qwen2"][0]

    return edited(folder, "llama3", edit)


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
MARKS = [*tiny.USER_DEFINED, "\u2581\u2581", "==="]
CASES: dict[str, Callable[[Path], Tokenizer]] = {
    "gpt2": _bytes("gpt2", "<u1>", "<u12>", "==", "==="),
    "digits_step": _bytes("single_digits"),
    "digits_expression": _bytes("two_splits"),
    "llama3": _bytes("llama3", *_OVERLAPPING),
    "qwen2": _qwen2,
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
               "a", "y'\u017fa", " <u", " <=>"]  # fmt: skip
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

    makers = (prose, lambda: any_of(_POOL, 20), unicode_text, lambda: any_of(special, 5), broken)
    return [makers[i % len(makers)]() for i in range(num)]
