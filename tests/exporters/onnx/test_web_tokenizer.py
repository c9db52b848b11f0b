"""The page's tokenizer, run by node, against ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import TEXTS, USER_DEFINED, byte_level_folder, sentencepiece_folder

from bcquant.exporters.onnx import web
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer

TOOLS = Path(__file__).parents[2] / "web"
SCRIPT = Path(web.__file__).parent / "web_page" / "tokenizer.js"
KINDS = (
    "gpt2", "single_digits", "digits", "llama3", "two_splits", "split_and_own_pattern",
    "prefix_space", "no_pattern", "beyond_ascii",
)  # fmt: skip
# Also: texts of nothing but spaces around a line end, a zero byte, a C1 control that JavaScript's
# \s lacks, the long s that is an s where case is ignored, and an added token that takes spaces.
MORE_TEXTS = (*TEXTS, "  \n  ", "\x00a", "x\u0085y", "we'\u017f", " x <tool> y<tool>z")


def ask(tokenizer_json: Path) -> Any:
    """What the page makes of MORE_TEXTS."""
    if shutil.which("node") is None:
        pytest.skip("no node; `make web-tools` installs it")
    done = subprocess.run(
        ["node", str(TOOLS / "tokenize.mjs"), str(SCRIPT)],
        input=json.dumps({"tokenizer": str(tokenizer_json), "texts": MORE_TEXTS}),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def check(source: Path, exported: Path) -> None:
    """The same ids and the same text back."""
    export_tokenizer(source, exported)
    ours = open_tokenizer(exported)
    for text, answer in zip(MORE_TEXTS, ask(exported / "tokenizer.json"), strict=True):
        assert answer["ids"] == ours.encode(text, add_special=False), repr(text)
        assert answer["text"] == ours.decode(answer["ids"]), repr(text)


@pytest.mark.parametrize("kind", KINDS)
def test_byte_level_ids_and_text_are_ours(kind: str, tmp_path: Path) -> None:
    from tokenizers import AddedToken

    added = (
        AddedToken("hello", normalized=True),
        AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False, special=True),
    )
    check(byte_level_folder(tmp_path / "m", kind, added=added), tmp_path / "out")


def test_ids_of_a_tokenizer_that_normalizes_are_ours(tmp_path: Path) -> None:
    from tokenizers import normalizers

    check(byte_level_folder(tmp_path / "m", "llama3", normalizers.NFC()), tmp_path / "out")


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"user_defined_symbols": USER_DEFINED},
        {"add_dummy_prefix": False, "user_defined_symbols": USER_DEFINED},
    ],
    ids=["llama", "baichuan", "squeezed", "user_defined", "baichuan_user_defined"],
)
def test_sentencepiece_ids_and_text_are_ours(training: dict[str, Any], tmp_path: Path) -> None:
    check(sentencepiece_folder(tmp_path / "m", **training), tmp_path / "out")


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_ids_are_ours(scheme: str, tmp_path: Path) -> None:
    export_tokenizer(sentencepiece_folder(tmp_path / "sp"), tmp_path / "m")
    parsed = json.loads((tmp_path / "m" / "tokenizer.json").read_bytes())
    step = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    parsed |= {"normalizer": None, "pre_tokenizer": step}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(parsed))
    ours = open_tokenizer(tmp_path / "m")
    for text, answer in zip(MORE_TEXTS, ask(tmp_path / "m" / "tokenizer.json"), strict=True):
        assert answer["ids"] == ours.encode(text, add_special=False), repr(text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pre_tokenizer": {"type": "Punctuation", "behavior": "Isolated"}}, "pre-tokenizer"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"decoder": {"type": "WordPiece"}}, "decoder"),
        ({"model": {"type": "Unigram", "vocab": [], "unk_id": 0}}, "model"),
    ],
)
def test_what_the_page_does_not_know_it_refuses(
    change: dict[str, Any], word: str, tmp_path: Path
) -> None:
    source = byte_level_folder(tmp_path / "m", "gpt2")
    parsed = json.loads((source / "tokenizer.json").read_bytes())
    (source / "tokenizer.json").write_text(json.dumps({**parsed, **change}))
    assert f"does not know the {word}" in ask(source / "tokenizer.json")["error"]
