"""Tokenizer keys: what each kind becomes, what is refused, and the proof that ids are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import VOCAB_SIZE, byte_level_json, make_checkpoint

from bcquant.errors import ExportError
from bcquant.exporters.gguf.file import Metadata, Value
from bcquant.exporters.gguf.tokens import build_vocabulary, prove
from bcquant.models.source import open_model
from bcquant.runtime.gguf_tokenizer import SPLITS, tokenizer_from_metadata
from bcquant.runtime.hard_texts import HARD_TEXTS
from bcquant.runtime.sentencepiece_json import convert_sentencepiece
from bcquant.runtime.token_backends import SentencePieceBackend
from bcquant.runtime.tokenizer import open_tokenizer

Edit = Callable[[dict[str, Any]], None]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(expression: str) -> dict[str, Any]:
    pattern = {"Regex": expression}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A float model with the byte-level tokenizer of `tiny_checkpoint`."""
    return make_checkpoint("llama", tmp_path / "m", dtype="F16", vocab_size=VOCAB_SIZE + 5)


def edit_json(folder: Path, edit: Edit) -> Path:
    state = json.loads(byte_level_json(VOCAB_SIZE))
    edit(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


def keys_of(folder: Path) -> dict[str, Any]:
    with open_model(folder) as source:
        found = build_vocabulary(source).metadata
    return {key.removeprefix("tokenizer.ggml."): value.data for key, value in found.items()}


def test_byte_level_keys(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    keys = keys_of(edit_json(folder, lambda state: None))
    model = json.loads(byte_level_json(VOCAB_SIZE))["model"]
    assert (keys["model"], keys["pre"]) == ("gpt2", "gpt-2")
    assert keys["tokens"][:VOCAB_SIZE] == sorted(model["vocab"], key=model["vocab"].__getitem__)
    assert keys["tokens"][VOCAB_SIZE:] == [f"[PAD{i}]" for i in range(VOCAB_SIZE, VOCAB_SIZE + 5)]
    assert keys["token_type"] == [3] * 3 + [1] * (VOCAB_SIZE - 3) + [5] * 5
    assert [m.split(" ") for m in keys["merges"]] == [list(m) for m in model["merges"]]
    assert [keys[f"{k}_token_id"] for k in ("padding", "bos", "eos")] == [0, 1, 2]
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, False)
    assert keys["tokenizer.chat_template"] == "{{ messages }}"


def pre_tokenizer(*steps: dict[str, Any], nfc: bool = False, ignore_merges: bool = False) -> Edit:
    def edit(state: dict[str, Any]) -> None:
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)}
        state["normalizer"] = {"type": "NFC"} if nfc else None
        state["model"]["ignore_merges"] = ignore_merges

    return edit


LLAMA3_SPLIT, QWEN2_SPLIT = SPLITS["llama-bpe"][0], SPLITS["qwen2"][0]
DIGITS = {"type": "Digits", "individual_digits": True}
GPT2 = {**BYTES, "use_regex": True}
RULES: dict[str, tuple[str, Edit]] = {
    "gpt2": ("gpt-2", pre_tokenizer(GPT2)),
    "smollm": ("smollm", pre_tokenizer(DIGITS, GPT2)),
    "smollm_as_split": ("smollm", pre_tokenizer(split(r"\p{N}"), GPT2)),
    "llama3": ("llama-bpe", pre_tokenizer(split(LLAMA3_SPLIT), BYTES, ignore_merges=True)),
    "dbrx": ("dbrx", pre_tokenizer(split(LLAMA3_SPLIT), BYTES)),
    "qwen2": ("qwen2", pre_tokenizer(split(QWEN2_SPLIT), BYTES, nfc=True)),
    "stablelm2": ("stablelm2", pre_tokenizer(split(QWEN2_SPLIT), BYTES)),
}


@pytest.mark.parametrize("rules", RULES)
def test_rules_are_found_by_their_expressions(rules: str, folder: Path) -> None:
    name, edit = RULES[rules]
    assert keys_of(edit_json(folder, edit))["pre"] == name


def with_added(**token: Any) -> Edit:
    def edit(state: dict[str, Any]) -> None:
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        state["added_tokens"].append({"id": VOCAB_SIZE, "content": "<tool>", **plain, **token})

    return edit


@pytest.mark.parametrize(("special", "kind"), [(False, 4), (True, 3)])
def test_added_tokens_come_after_the_vocabulary(special: bool, kind: int, folder: Path) -> None:
    keys = keys_of(edit_json(folder, with_added(special=special)))
    assert keys["tokens"][VOCAB_SIZE : VOCAB_SIZE + 2] == ["<tool>", f"[PAD{VOCAB_SIZE + 1}]"]
    assert keys["token_type"][VOCAB_SIZE : VOCAB_SIZE + 2] == [kind, 5]


def change(part: str, value: Any) -> Edit:
    def edit(state: dict[str, Any]) -> None:
        target = state["model"] if part in ("byte_fallback", "dropout") else state
        target[part] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (pre_tokenizer(split(r"\d+"), BYTES), r"it cuts text by \['\\\\d\+'\]"),
        (pre_tokenizer(split(LLAMA3_SPLIT), BYTES, nfc=True), "no tokenizer.ggml.pre with exactly"),
        (pre_tokenizer({"type": "Whitespace"}, BYTES), 'step {"type": "Whitespace"} is unknown'),
        (pre_tokenizer({**GPT2, "add_prefix_space": True}), "is unknown to llama.cpp"),
        (pre_tokenizer(split(LLAMA3_SPLIT)), "does not end in ByteLevel"),
        (change("normalizer", {"type": "Lowercase"}), "normalizer is 'Lowercase'"),
        (change("byte_fallback", True), "uses byte_fallback"),
        (with_added(rstrip=True), "'<tool>' asks for rstrip"),
    ],
)
def test_other_byte_level_rules_are_refused(edit: Edit, message: str, folder: Path) -> None:
    with pytest.raises(ExportError, match=message):
        keys_of(edit_json(folder, edit))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    with pytest.raises(ExportError, match="has 385 ids and the model 384"):
        keys_of(edit_json(folder, with_added()))


def test_text_around_that_gguf_cannot_say_is_refused(folder: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        from tokenizers.processors import TemplateProcessing

        two = TemplateProcessing(single="<s> <pad> $A", special_tokens=[("<s>", 1), ("<pad>", 0)])
        state["post_processor"] = json.loads(two.__getstate__())

    with pytest.raises(ExportError, match=r"it puts \[1, 0\] before and \[\] after a text"):
        keys_of(edit_json(folder, edit))


def test_several_end_tokens_take_the_keys_there_are(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5, 6, 7]}))
    with open_model(edit_json(folder, lambda state: None)) as source:
        vocabulary = build_vocabulary(source)
    ids = [vocabulary.metadata[f"tokenizer.ggml.{k}_token_id"].data for k in ("eos", "eot", "eom")]
    assert ids == [2, 5, 6]
    assert "room for three, [7] are lost" in vocabulary.notes[0]


@pytest.fixture
def marked(tmp_path: Path, sentencepiece_source: Callable[..., Path]) -> Callable[..., Path]:
    """A Baichuan with a tokenizer.model of these settings, or with the tokenizer.json of it."""

    def make(as_json: bool = False, **settings: Any) -> Path:
        folder = sentencepiece_source(tmp_path / "m", **settings)
        if as_json:
            proto = (folder / "tokenizer.model").read_bytes()
            converted = convert_sentencepiece(SentencePieceBackend(proto, "test"), "test")
            converted.save(str(folder / "tokenizer.json"))
        return folder

    return make


def test_sentencepiece_keys(marked: Callable[..., Path]) -> None:
    folder = marked()
    keys = keys_of(folder)
    backend = open_tokenizer(folder).backend
    size = backend.vocab_size
    assert keys["model"] == "llama"
    assert keys["tokens"][:size] == [backend.piece(i) for i in range(size)]
    assert keys["token_type"] == [2, 3, 3, *[6] * 256, *[1] * (size - 259), *[5] * (420 - size)]
    assert (keys["add_space_prefix"], keys["remove_extra_whitespaces"]) == (True, False)
    assert [keys[f"{k}_token_id"] for k in ("unknown", "bos", "eos")] == [0, 1, 2]
    assert not keys["add_bos_token"]


def test_bos_and_prefix_are_the_models_own(marked: Callable[..., Path]) -> None:
    keys = keys_of(marked(add_dummy_prefix=False, add_bos_token=True))
    assert (keys["add_space_prefix"], keys["add_bos_token"]) == (False, True)


def test_user_defined_pieces_are_typed_so_without_a_prefix(marked: Callable[..., Path]) -> None:
    keys = keys_of(marked(add_dummy_prefix=False, user_defined_symbols=["，", "<x>", "▁▁▁"]))
    assert keys["tokens"][3:6] == ["，", "<x>", "   "], "spelled as in the text"
    assert keys["token_type"][3:6] == [4, 4, 4]


def test_user_defined_pieces_that_merging_finds_need_no_type(marked: Callable[..., Path]) -> None:
    """After a user-defined token llama.cpp puts the space prefix once more; SentencePiece not."""
    folder = marked(user_defined_symbols=["，", "==", "=", "<x>"])
    with open_model(folder) as source:
        vocabulary = build_vocabulary(source)
    assert vocabulary.metadata["tokenizer.ggml.token_type"].data[3:7] == [1, 1, 1, 4]
    assert vocabulary.stuck == ("<x>",)


def test_a_tokenizer_json_made_from_sentencepiece(marked: Callable[..., Path]) -> None:
    folder = marked(as_json=True)
    (folder / "tokenizer.model").unlink()
    keys = keys_of(folder)
    assert (keys["model"], keys["add_space_prefix"]) == ("llama", True)
    assert keys["token_type"][:259] == [2, 3, 3, *[6] * 256]


def test_scores_come_from_the_tokenizer_model_beside_it(marked: Callable[..., Path]) -> None:
    folder = marked(as_json=True, user_defined_symbols=["，"])
    keys = keys_of(folder)
    assert (keys["tokens"][3], keys["scores"][260]) == ("，", -0.0)
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ExportError, match="text preparation"):
        keys_of(folder)


def test_metaspace_is_taken_where_llama_cpp_does_the_same(marked: Callable[..., Path]) -> None:
    """It puts no second space before a text that begins with one; SentencePiece does."""

    def keys_with(scheme: str) -> dict[str, Any]:
        state = json.loads((folder / "tokenizer.json").read_text())
        state["normalizer"] = None
        rules = {"replacement": "▁", "prepend_scheme": scheme, "split": False}
        state["pre_tokenizer"] = {"type": "Metaspace", **rules}
        (folder / "tokenizer.json").write_text(json.dumps(state))
        return keys_of(folder)

    folder = marked(as_json=True)
    (folder / "tokenizer.model").unlink()
    assert keys_with("never")["add_space_prefix"] is False
    for scheme in ("first", "always"):
        with pytest.raises(ExportError, match="no space before a text that begins with one"):
            keys_with(scheme)


def test_merges_of_another_kind_are_refused(marked: Callable[..., Path]) -> None:
    folder = marked(as_json=True)
    (folder / "tokenizer.model").unlink()
    state = json.loads((folder / "tokenizer.json").read_text())
    del state["model"]["merges"][5]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ExportError, match="lists other merges"):
        keys_of(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove_extra_whitespaces": True}, "it removes extra spaces before cutting"),
        ({"normalization_rule_name": "nfkc"}, "it normalizes text before cutting"),
        ({"byte_fallback": False}, "it has no piece for each byte"),
        ({"model_type": "unigram"}, "another kind than BPE"),
    ],
)
def test_other_sentencepiece_models_are_refused(
    settings: dict[str, Any], message: str, marked: Callable[..., Path]
) -> None:
    with pytest.raises(ExportError, match=message):
        keys_of(marked(**settings))


@pytest.fixture
def proof(folder: Path) -> Iterator[Callable[[Edit], None]]:
    with open_model(folder) as source:
        found = build_vocabulary(source).metadata

    def run(edit: Edit) -> None:
        data = {key: value.data for key, value in found.items()}
        edit(data)
        changed: Metadata = {k: Value(found[k].kind, v) for k, v in data.items()}
        prove(changed, open_tokenizer(folder), "m")

    yield run


@pytest.mark.parametrize(
    ("key", "edit", "text"),
    [
        ("tokens", lambda value: [*value[:3], value[4], value[3], *value[5:]], "WON'T"),
        ("merges", lambda value: value[1:], "leading"),
        ("token_type", lambda value: [1] * len(value), "</s>"),
    ],
)
def test_the_proof_fails_and_names_the_text(
    key: str, edit: Callable[[Any], Any], text: str, proof: Callable[[Edit], None]
) -> None:
    proof(lambda data: None)

    def change_key(data: dict[str, Any]) -> None:
        data[f"tokenizer.ggml.{key}"] = edit(data[f"tokenizer.ggml.{key}"])

    with pytest.raises(ExportError, match=f"from GGUF keys .*{text}"):
        proof(change_key)


def test_a_gguf_source_gives_its_own_keys_back(demo_model: Path) -> None:
    with open_model(demo_model) as source:
        before = source.reader.metadata
        found = {key: value.data for key, value in build_vocabulary(source).metadata.items()}
    for key in ("tokens", "merges", "token_type", "pre", "bos_token_id", "eos_token_id"):
        assert found[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"], key
    rebuilt, original = tokenizer_from_metadata(found, "m"), open_tokenizer(demo_model)
    assert [rebuilt.encode(t) for t in HARD_TEXTS] == [original.encode(t) for t in HARD_TEXTS]
