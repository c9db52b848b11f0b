from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcquant.runtime.decode_stream import DecodeStream
from bcquant.runtime.tokenizer import open_tokenizer


def _bytes_of(token_id: int) -> bytes:
    return bytes([token_id])


@given(st.binary(max_size=200))
def test_stream_of_single_bytes_equals_decoding_at_once(data: bytes) -> None:
    stream = DecodeStream(_bytes_of)
    text = "".join(stream.push(byte) for byte in data) + stream.flush()
    assert text == data.decode("utf-8", "replace")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_stream_never_shows_a_part_of_a_character(text: str) -> None:
    stream = DecodeStream(_bytes_of)
    shown = ""
    for byte in text.encode():
        shown += stream.push(byte)
        assert text.startswith(shown)
    assert shown == text  # nothing is held back after the last whole character
    assert stream.flush() == ""


def test_half_a_character_comes_out_at_the_end_as_replacement() -> None:
    stream = DecodeStream(_bytes_of)
    assert [stream.push(byte) for byte in "世".encode()[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"


def test_broken_bytes_do_not_stall_the_stream() -> None:
    stream = DecodeStream(_bytes_of)
    assert stream.push(0xE4) == ""
    assert stream.push(ord("a")) == "\ufffda"


@pytest.mark.parametrize("folder", ["byte_level", "baichuan_folder", "llama_folder"])
def test_stream_equals_decode_on_real_tokens(
    folder: str, texts: list[str], request: pytest.FixtureRequest
) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(folder))
    for text in texts:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream(is_continuation=False)
        assert "".join(stream.push(i) for i in ids) + stream.flush() == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 899), max_size=60))
def test_random_ids_give_valid_text(sentencepiece_tokenizer: object, ids: list[int]) -> None:
    stream = sentencepiece_tokenizer.stream()  # type: ignore[attr-defined]
    text = "".join(stream.push(i) for i in ids) + stream.flush()
    codecs.encode(text, "utf-8")  # raises on a lone surrogate


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(
    sentencepiece_proto: bytes, tmp_path_factory: pytest.TempPathFactory
) -> object:
    folder: Path = tmp_path_factory.mktemp("sp")
    (folder / "tokenizer.model").write_bytes(sentencepiece_proto)
    return open_tokenizer(folder)


def test_continuation_keeps_the_leading_space(llama_folder: Path) -> None:
    tokenizer = open_tokenizer(llama_folder)
    ids = tokenizer.encode("the", add_special=False)  # SentencePiece spells it "▁the"
    assert tokenizer.decode(ids) == "the"
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == " the"
