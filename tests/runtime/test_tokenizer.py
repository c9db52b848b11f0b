from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bcquant.errors import CheckpointError, ConfigError
from bcquant.runtime.tokenizer import open_tokenizer


def test_tokenizer_json_gives_the_library_ids(byte_level: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer

    judge, tokenizer = (
        Tokenizer.from_file(str(byte_level / "tokenizer.json")),
        open_tokenizer(byte_level),
    )
    for text in texts:
        assert tokenizer.encode(text) == judge.encode(text).ids


def test_tokenizer_model_gives_the_library_ids(
    baichuan_folder: Path, sentencepiece_proto: bytes, texts: list[str]
) -> None:
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_proto=sentencepiece_proto)
    tokenizer = open_tokenizer(baichuan_folder)
    for text in texts:
        assert tokenizer.encode(text) == judge.encode(text)


def test_byte_level_decode_gives_the_text_back(byte_level: Path, texts: list[str]) -> None:
    tokenizer = open_tokenizer(byte_level)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepiece_decode_agrees_with_the_library(
    baichuan_folder: Path, sentencepiece_proto: bytes, texts: list[str]
) -> None:
    from sentencepiece import SentencePieceProcessor

    judge = SentencePieceProcessor(model_proto=sentencepiece_proto)
    tokenizer = open_tokenizer(baichuan_folder)
    for text in texts:
        ids = judge.encode(text)
        assert tokenizer.decode(ids) == judge.decode(ids)


def test_special_ids_come_from_all_the_files(byte_level: Path) -> None:
    tokenizer = open_tokenizer(byte_level)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (0, (1, 2), None)


def test_baichuan_adds_neither_bos_nor_eos(baichuan_folder: Path) -> None:
    tokenizer = open_tokenizer(baichuan_folder)
    assert tokenizer.encode("a") == tokenizer.encode("a", add_special=False)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_llama_class_adds_bos_by_default(llama_folder: Path) -> None:
    tokenizer = open_tokenizer(llama_folder)
    assert tokenizer.encode("a") == [1, *tokenizer.encode("a", add_special=False)]


def test_explicit_setting_beats_the_post_processor(byte_level: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(byte_level, tmp_path / "copy")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": False}))
    assert open_tokenizer(folder).encode("a")[0] != 0


def test_special_tokens_in_the_text_are_parsed(baichuan_folder: Path) -> None:
    tokenizer = open_tokenizer(baichuan_folder)
    assert tokenizer.encode("a</s>b") == [*tokenizer.encode("a"), 2, *tokenizer.encode("b")]


@pytest.mark.parametrize("folder", ["byte_level", "baichuan_folder"])
def test_special_tokens_can_stay_plain_text(folder: str, request: pytest.FixtureRequest) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(folder))
    eos = tokenizer.backend.piece(tokenizer.eos_ids[0])
    assert eos
    ids = tokenizer.encode(f"a{eos}", parse_special=False)
    assert tokenizer.eos_ids[0] not in ids
    assert tokenizer.decode(ids) == f"a{eos}"


def test_decode_hides_special_tokens_unless_asked(byte_level: Path) -> None:
    tokenizer = open_tokenizer(byte_level)
    ids = tokenizer.encode("hi<|end|>")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, keep_special=True) == "<|begin|>hi<|end|>"


def test_ids_outside_the_vocabulary_decode_to_nothing(byte_level: Path) -> None:
    tokenizer = open_tokenizer(byte_level)
    assert tokenizer.decode([-1, tokenizer.vocab_size, 10**9]) == ""


def test_lone_surrogates_are_encoded_as_replacement(byte_level: Path) -> None:
    tokenizer = open_tokenizer(byte_level)
    assert "\ufffd" in tokenizer.decode(tokenizer.encode("bad \udcff byte"))


def test_added_tokens_beside_a_sentencepiece_model(baichuan_folder: Path) -> None:
    size = open_tokenizer(baichuan_folder).vocab_size
    (baichuan_folder / "added_tokens.json").write_text(json.dumps({"<turn>": size}))
    tokenizer = open_tokenizer(baichuan_folder)
    assert tokenizer.vocab_size == size + 1
    assert tokenizer.encode("a<turn>b") == [*tokenizer.encode("a"), size, *tokenizer.encode("b")]


def test_added_token_that_needs_stripping_is_refused(baichuan_folder: Path) -> None:
    token = {"950": {"content": "<x>", "rstrip": True, "special": True}}
    (baichuan_folder / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": token})
    )
    with pytest.raises(ConfigError, match="rstrip"):
        open_tokenizer(baichuan_folder)


def test_added_token_on_an_id_in_use_is_refused(baichuan_folder: Path) -> None:
    (baichuan_folder / "added_tokens.json").write_text(json.dumps({"<turn>": 300}))
    with pytest.raises(ConfigError, match="has id 300"):
        open_tokenizer(baichuan_folder)


def test_chat_ends_where_the_assistant_answers(byte_level: Path) -> None:
    tokenizer = open_tokenizer(byte_level)
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
    assert tokenizer.decode(ids, keep_special=True) == "<|turn|>user: hi<|end|><|turn|>assistant: "
    assert ids[0] == 2


def test_chat_without_a_template_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        open_tokenizer(llama_folder).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",  # the sandbox refuses it
        "{% for %}",
        "{{ raise_exception('system role not supported') }}",
        "{{ messages[7].content.x }}",
        "{{ 1 // 0 }}",
    ],
)
def test_bad_chat_template_is_a_config_error(
    byte_level: Path, tmp_path: Path, template: str
) -> None:
    folder = shutil.copytree(byte_level, tmp_path / "copy")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match="chat template"):
        open_tokenizer(folder).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"model": 3}', b"\xff\xfe"])
def test_damaged_tokenizer_json_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_word_piece_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="WordPiece"):
        open_tokenizer(tmp_path)


def test_damaged_tokenizer_model_is_a_checkpoint_error(
    tmp_path: Path, sentencepiece_proto: bytes
) -> None:
    for content in (b"", b"\xff" * 40, sentencepiece_proto[: len(sentencepiece_proto) // 2 + 1]):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
            open_tokenizer(tmp_path)


def test_folder_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        open_tokenizer(tmp_path)


def test_missing_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_tokenizer(tmp_path / "nothing")


def test_weight_file_opens_the_tokenizer_of_its_folder(byte_level: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(byte_level, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"")
    assert open_tokenizer(folder / "model.safetensors").vocab_size == 700
