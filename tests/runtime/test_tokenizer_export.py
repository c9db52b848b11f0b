from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bcquant.errors import ExportError
from bcquant.runtime.sentencepiece_json import convert_sentencepiece
from bcquant.runtime.token_backends import AddedToken, SentencePieceBackend
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer


def _auto_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.judge
@pytest.mark.parametrize("source", ["byte_level", "baichuan_folder", "llama_folder"])
def test_auto_tokenizer_gives_our_ids(
    source: str, texts: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(source)
    export_tokenizer(folder, tmp_path / "out")
    ours, judge = open_tokenizer(folder), _auto_tokenizer(tmp_path / "out")
    eos = ours.backend.piece(ours.eos_ids[0])
    for text in [*texts, f"a{eos}b"]:
        assert judge(text)["input_ids"] == ours.encode(text)
    assert judge.eos_token_id == ours.eos_ids[0]
    assert judge.bos_token_id == ours.bos_id


@pytest.mark.judge
def test_auto_tokenizer_gives_the_ids_of_the_gguf(
    demo_model: Path, texts: list[str], tmp_path: Path
) -> None:
    export_tokenizer(demo_model, tmp_path)
    ours, judge = open_tokenizer(demo_model), _auto_tokenizer(tmp_path)
    for text in texts:
        assert judge(text)["input_ids"] == ours.encode(text)
    chat = [{"role": "user", "content": "hi"}]
    rendered = judge.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert rendered == ours.encode_chat(chat)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["byte_level", "baichuan_folder", "llama_folder"])
def test_our_reader_gives_the_same_ids_and_settings_from_the_export(
    source: str, texts: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(source)
    export_tokenizer(folder, tmp_path)
    before, after = open_tokenizer(folder), open_tokenizer(tmp_path)
    assert before.eos_ids == after.eos_ids
    assert before.chat_template == after.chat_template
    for text in texts:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))


def test_custom_code_is_dropped_and_the_rest_is_kept(baichuan_folder: Path, tmp_path: Path) -> None:
    (baichuan_folder / "special_tokens_map.json").write_text("{}")
    names = export_tokenizer(baichuan_folder, tmp_path)
    assert names == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "auto_map" not in settings
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["eos_token"] == {"content": "</s>", "__type": "AddedToken"}
    same = (tmp_path / "tokenizer.model").read_bytes()
    assert same == (baichuan_folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("source", ["byte_level", "baichuan_folder"])
def test_export_writes_the_same_bytes_every_time(
    source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(source)
    names = export_tokenizer(folder, tmp_path / "a")
    assert export_tokenizer(folder, tmp_path / "b") == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_export_into_a_file_is_an_export_error(byte_level: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ExportError, match="out"):
        export_tokenizer(byte_level, tmp_path / "out")


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("ab,，。=\n ▁<reserved_1>1é世🎉the\u00a0"), max_size=40))
def test_converted_sentencepiece_equals_the_original(sentencepiece_proto: bytes, text: str) -> None:
    backend, converted = _converted(sentencepiece_proto)
    assert converted.encode(text, add_special_tokens=False).ids == backend.encode(text, True)


_CACHE: dict[int, tuple[SentencePieceBackend, Any]] = {}


def _converted(proto: bytes) -> tuple[SentencePieceBackend, Any]:
    if id(proto) not in _CACHE:
        backend = SentencePieceBackend(proto, "test")
        _CACHE[id(proto)] = backend, convert_sentencepiece(backend, "test")
    return _CACHE[id(proto)]


@pytest.mark.parametrize(
    "over",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"user_defined_symbols": []},
        {"byte_fallback": False},
    ],
)
def test_other_sentencepiece_settings_convert(
    over: dict[str, Any], texts: list[str], train: Callable[..., bytes]
) -> None:
    backend = SentencePieceBackend(train(**over), "test")
    converted = convert_sentencepiece(backend, "test")
    for text in texts:
        assert converted.encode(text, add_special_tokens=False).ids == backend.encode(text, True)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"model_type": "unigram"}, "other than BPE"),
        ({"normalization_rule_name": "nfkc"}, "identity"),
    ],
)
def test_what_cannot_be_converted_is_an_export_error(
    over: dict[str, Any], message: str, train: Callable[..., bytes]
) -> None:
    with pytest.raises(ExportError, match=message):
        convert_sentencepiece(SentencePieceBackend(train(**over), "test"), "test")


def test_added_tokens_are_converted_with_their_ids(sentencepiece_proto: bytes) -> None:
    size = SentencePieceBackend(sentencepiece_proto, "test").vocab_size
    added = {size: AddedToken("<turn>", True), size + 1: AddedToken("<tool>", False)}
    backend = SentencePieceBackend(sentencepiece_proto, "test", added)
    converted = convert_sentencepiece(backend, "test")
    assert converted.encode("a<turn>b<tool>").ids == backend.encode("a<turn>b<tool>", True)


def test_added_token_after_a_gap_is_an_export_error(sentencepiece_proto: bytes) -> None:
    size = SentencePieceBackend(sentencepiece_proto, "test").vocab_size
    backend = SentencePieceBackend(
        sentencepiece_proto, "test", {size + 5: AddedToken("<turn>", True)}
    )
    with pytest.raises(ExportError, match="without a gap"):
        convert_sentencepiece(backend, "test")
