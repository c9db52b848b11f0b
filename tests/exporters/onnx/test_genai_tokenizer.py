"""Ids of onnxruntime-genai for the tokenizer.json of `--target genai`, against ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from onnx_run import export
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder
from tiny_tokenizers import TEXTS, USER_DEFINED, byte_level_folder, sentencepiece_folder

from bcquant.errors import ExportError
from bcquant.exporters.onnx.genai import notes
from bcquant.exporters.onnx.genai_tokenizer import adapt_tokenizer
from bcquant.exporters.onnx.options import OnnxOptions
from bcquant.models.source import open_model
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.quant_format import QuantFormat

READ_RIGHT = ("gpt2", "single_digits", "digits", "llama3", "two_splits", "split_and_own_pattern")
REFUSED = {
    "prefix_space": "a space before each text",
    "no_pattern": "does not split words",
    "beyond_ascii": "beyond ASCII",
    "removed": "does not keep both parts",
    "punctuation": "pre-tokenizer Punctuation",
}


@pytest.fixture(scope="module")
def genai() -> Any:
    reason = "onnxruntime-genai, the judge, is not installed"
    return pytest.importorskip("onnxruntime_genai", reason=reason)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for genai, whose tokenizer files are replaced: it opens no tokenizer alone."""
    root = tmp_path_factory.mktemp("genai")
    source = make_checkpoint("llama", root / "m", dtype="F16")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    return export(source, root / "out", target="genai")


def differing(genai: Any, model_folder: Path, source: Path, work: Path) -> tuple[list[str], Any]:
    """Texts whose ids differ from ours, and the notes."""
    shutil.copytree(model_folder, work)
    export_tokenizer(source, work)
    parsed = json.loads((work / "tokenizer.json").read_bytes())
    adapted, said = adapt_tokenizer(parsed, "it")
    (work / "tokenizer.json").write_text(json.dumps(adapted or parsed))
    judge = genai.Tokenizer(genai.Model(str(work)))
    judge.update_options(add_special_tokens="true")
    ours = open_tokenizer(source)
    wrong = [text for text in TEXTS if [int(i) for i in judge.encode(text)] != ours.encode(text)]
    return wrong, said


@pytest.mark.judge
@pytest.mark.parametrize("kind", READ_RIGHT)
def test_byte_level_ids_agree(kind: str, genai: Any, model_folder: Path, tmp_path: Path) -> None:
    source = byte_level_folder(tmp_path / "m", kind)
    assert differing(genai, model_folder, source, tmp_path / "w") == ([], ())


@pytest.mark.parametrize("kind", REFUSED)
def test_what_genai_reads_wrong_is_refused(kind: str, tmp_path: Path) -> None:
    source = byte_level_folder(tmp_path / "m", kind)
    parsed = json.loads((source / "tokenizer.json").read_bytes())
    with pytest.raises(ExportError, match=REFUSED[kind]):
        adapt_tokenizer(parsed, "it")


@pytest.mark.judge
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_read_wrong(
    kind: str, genai: Any, model_folder: Path, tmp_path: Path
) -> None:
    """So that a genai that learned to read it is noticed."""
    source = byte_level_folder(tmp_path / "m", kind)
    shutil.copytree(model_folder, tmp_path / "w")
    shutil.copyfile(source / "tokenizer.json", tmp_path / "w" / "tokenizer.json")
    ours = open_tokenizer(source)
    judge = genai.Tokenizer(genai.Model(str(tmp_path / "w")))

    def ids(text: str) -> list[int] | None:
        try:
            return [int(i) for i in judge.encode(text)]
        except RuntimeError:  # how it fails on characters beyond ASCII
            return None

    assert any(ids(text) != ours.encode(text) for text in TEXTS)


@pytest.mark.judge
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"add_bos": True},
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "user_defined_symbols": USER_DEFINED},
    ],
    ids=["llama", "with_begin_token", "baichuan", "baichuan_with_user_defined"],
)
def test_sentencepiece_ids_agree(
    training: dict[str, Any], genai: Any, model_folder: Path, tmp_path: Path
) -> None:
    source = sentencepiece_folder(tmp_path / "m", **training)
    assert differing(genai, model_folder, source, tmp_path / "w") == ([], ())


@pytest.mark.judge
def test_texts_that_differ_have_a_note(genai: Any, model_folder: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    source = byte_level_folder(tmp_path / "nfc", "gpt2", normalizers.NFC())
    wrong, said = differing(genai, model_folder, source, tmp_path / "w1")
    assert wrong == ["\u00e9 e\u0301 \u00f1"] and "NFC" in said[0]

    source = sentencepiece_folder(tmp_path / "sp", user_defined_symbols=USER_DEFINED)
    wrong, said = differing(genai, model_folder, source, tmp_path / "w2")
    assert wrong and all(any(piece in text for piece in USER_DEFINED) for text in wrong)
    assert len(said) == 1 and "user-defined" in said[0]

    source = sentencepiece_folder(tmp_path / "squeeze", remove_extra_whitespaces=True)
    wrong, said = differing(genai, model_folder, source, tmp_path / "w3")
    assert wrong and all(" " in text or "\u2581" in text for text in wrong)
    assert len(said) == 1 and "runs of spaces" in said[0]


def test_notes_of_a_model_with_a_begin_token(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    config = json.loads((source / "tokenizer_config.json").read_bytes())
    with open_model(source) as opened:
        assert notes(opened, OnnxOptions(target="genai")) == ()
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    with open_model(source) as opened:
        (said,) = notes(opened, OnnxOptions(target="genai"))
    assert 'add_special_tokens="true"' in said
