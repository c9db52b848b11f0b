"""The runtime's tokenizers against the libraries that the checkpoints' own tokenizers run on."""

from __future__ import annotations

import ctypes
import io
import itertools
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mobile_tokenizer as native
import numpy as np
import pytest
import tiny_tokenizers as tiny
from mobile_tokenizer_cases import CASES, SMOLLM, edited, texts

from bcquant.errors import ExportError
from bcquant.exporters.mobile import byte_level_table
from bcquant.exporters.mobile.tokenizer_section import tokenizer_section
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer
from bcquant.runtime.token_backends import SentencePieceBackend, TokenizersBackend
from bcquant.runtime.tokenizer import open_tokenizer

NUM_TEXTS = 100_000
PARSES, FRAMES = native.PARSES_SPECIAL, native.ADDS_FRAME


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("library")
    link, sources = ["-shared", "-Wl,-z,defs"], [*native.SOURCES, native.BATCH]
    return ctypes.CDLL(str(native.build(folder, sources, ["-O2", "-fPIC"], link)))


@pytest.fixture(scope="module", params=[*CASES, "smollm2"])
def pair(
    request: pytest.FixtureRequest,
    library: ctypes.CDLL,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Tokenizer, native.NativeTokenizer]]:
    """A checkpoint's tokenizer and the runtime's, from its section."""
    if request.param == "smollm2":
        if not SMOLLM.is_file():
            pytest.skip(f"{SMOLLM.name} is not in the cache")
        wanted = open_tokenizer(SMOLLM)
    else:
        wanted = CASES[request.param](tmp_path_factory.mktemp("case") / request.param)
    section = tokenizer_section(wanted, wanted.vocab_size, request.param)
    got = native.NativeTokenizer(library, section)
    yield wanted, got
    got.close()


def test_ids_equal_the_checkpoints_tokenizer(pair: Any) -> None:
    wanted, got = pair
    some = texts(NUM_TEXTS)
    for parses, part in ((True, some[::2]), (False, some[1::2])):
        ids, num_ids = got.encode_many([text.encode() for text in part], PARSES * parses)
        all_wanted = _encode_all(wanted.backend, part, parses)
        flat = np.fromiter(itertools.chain.from_iterable(all_wanted), np.int32)
        assert flat.size > len(part)
        if np.array_equal(flat, ids) and num_ids.tolist() == list(map(len, all_wanted)):
            continue
        for text, wanted_ids in zip(part, all_wanted, strict=True):
            assert got.encode(text.encode(), PARSES * parses) == wanted_ids, (text, parses)
        pytest.fail("encode_many and encode differ")


def _encode_all(backend: Any, some: list[str], parses: bool) -> list[list[int]]:
    """What `backend.encode` gives for each, in one call where the library has one."""
    if isinstance(backend, TokenizersBackend):
        backend.tokenizer.encode_special_tokens = not parses
        found = backend.tokenizer.encode_batch_fast(some, add_special_tokens=False)
        return [encoding.ids for encoding in found]
    return [backend.encode(text, parses) for text in some]


def test_bytes_that_are_no_text_are_read_as_python_replaces_them(pair: Any) -> None:
    wanted, got = pair
    source = random.Random(1)
    leads = b"a \xe4\xbd\xa0\xf0\x9f\x98\x80\xed\xa0\xc2\xe0\xf4\x90\xff"
    for _ in range(3000):
        data = bytes(source.choices(leads, k=source.randrange(10))) + source.randbytes(2)
        ids = wanted.encode(data.decode("utf-8", "replace"))
        assert got.encode(data, FRAMES | PARSES) == ids, data


def test_long_texts(pair: Any) -> None:
    # Anything quadratic in these would take minutes.
    wanted, got = pair
    for text in ("a" * 100_000, " " * 50_000, "\u4f60" * 20_000, "ab1 =\n" * 15_000):
        assert got.encode(text.encode(), 0) == wanted.backend.encode(text, False), text[:9]


def test_tokens_show_as_they_do_in_python(pair: Any) -> None:
    wanted, got = pair
    shown = wanted.backend
    for i in range(-2, wanted.vocab_size + 2):
        assert got.token(i) == (b"" if shown.is_special(i) else shown.token_bytes(i)), i


def test_streams_give_what_decode_stream_gives(pair: Any) -> None:
    wanted, got = pair
    source = random.Random(2)
    ordinary = [wanted.backend.encode(text, True) for text in texts(NUM_TEXTS)[:600]]
    others = [[source.randrange(-1, wanted.vocab_size + 1) for _ in range(9)] for _ in range(600)]
    for ids in (*ordinary, *others):
        for is_continuation in (False, True):
            stream = wanted.stream(is_continuation=is_continuation)
            pieces = [*(stream.push(i).encode() for i in ids), stream.flush().encode()]
            assert got.stream_pieces(ids, is_continuation) == pieces, ids


def test_a_stream_holds_a_character_back_until_it_is_whole(
    library: ctypes.CDLL, tmp_path: Path
) -> None:
    wanted = open_tokenizer(tiny.byte_level_folder(tmp_path / "t", "gpt2"))
    got = native.NativeTokenizer(library, tokenizer_section(wanted, wanted.vocab_size, "t"))
    ids = got.encode("\U0001f600".encode(), 0)
    assert len(ids) == 4
    assert got.stream_pieces(ids, False) == [b"", b"", b"", "\U0001f600".encode(), b""]
    assert got.stream_pieces(ids[:3], False) == [b"", b"", b"", "\ufffd".encode()]
    got.close()


def test_begin_and_end_tokens_go_around_a_text(library: ctypes.CDLL, tmp_path: Path) -> None:
    backend = CASES["pieces"](tmp_path / "t").backend
    wanted = Tokenizer(backend, SpecialTokens(prefix_ids=(1,), suffix_ids=(2,)))
    got = native.NativeTokenizer(library, tokenizer_section(wanted, 400, "t"))
    for text in ("", "a </s> b"):
        assert got.encode(text.encode(), FRAMES | PARSES) == wanted.encode(text)
        assert got.encode(text.encode(), FRAMES) == wanted.encode(text, parse_special=False)
        assert got.encode(text.encode(), PARSES) == wanted.encode(text, add_special=False)
    got.close()


def test_ids_beyond_the_room_are_counted(library: ctypes.CDLL, tmp_path: Path) -> None:
    wanted = CASES["pieces"](tmp_path / "t")
    got = native.NativeTokenizer(library, tokenizer_section(wanted, 400, "t"))
    ids = got.encode(b"some words", 0)
    assert got.encode(b"some words", 0, capacity=2) == ids[:2]
    assert got.num_ids == len(ids) > 2
    assert got.encode(b"some words", 0, capacity=0) == []
    assert got.num_ids == len(ids)
    got.close()


def test_null_pointers_and_unknown_flags_are_refused(library: ctypes.CDLL, tmp_path: Path) -> None:
    made, num = ctypes.c_void_p(), ctypes.c_size_t()
    size = ctypes.c_size_t
    assert library.bcq_tokenizer_create(None, size(0), ctypes.byref(made)) == 1
    assert library.bcq_tokenizer_create(b"", size(0), None) == 1
    assert library.bcq_stream_create(None, 0, ctypes.byref(made)) == 1
    wanted = CASES["pieces"](tmp_path / "t")
    got = native.NativeTokenizer(library, tokenizer_section(wanted, 400, "t"))
    arguments = (None, size(0), ctypes.byref(num))
    assert library.bcq_tokenizer_encode(got._handle, None, size(1), 0, *arguments) == 1
    assert library.bcq_tokenizer_encode(got._handle, b"a", size(1), 4, *arguments) == 1
    library.bcq_tokenizer_destroy(None)
    library.bcq_stream_destroy(None)
    got.close()


def test_damaged_sections_give_a_status(tmp_path: Path) -> None:
    sections = []
    cases = ("pieces_squeezed", "pieces_added", "metaspace_first_nfc", "qwen2_nfc", "byte_unknown")
    for case in cases:
        wanted = CASES[case](tmp_path / case)
        sections.append(tmp_path / f"{case}.section")
        sections[-1].write_bytes(tokenizer_section(wanted, wanted.vocab_size, case))
    attack = native.ROOT / "mobile" / "tests" / "tokenizer_attack.cpp"
    sanitizers = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = native.build(tmp_path, [*native.SOURCES, attack], sanitizers, [])
    out = native.run([str(program), *map(str, sections)])
    assert out.endswith("tokenizer_attack: all passed\n")
    assert out.count("damaged ones accepted") == len(sections)


def test_the_runtime_needs_no_cpp_library(library: ctypes.CDLL) -> None:
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    assert "stdc++" not in native.run(["ldd", library._name])


def test_character_classes_are_those_of_the_tokenizers_library() -> None:
    # Asks the library about every code point again.
    tools = native.ROOT / "mobile" / "tools"
    sys.path.insert(0, str(tools))
    try:
        import make_unicode_tables
    finally:
        sys.path.remove(str(tools))
    file = native.ROOT / "mobile" / "runtime" / "unicode_tables.inc"
    made = make_unicode_tables.table().splitlines()
    assert file.read_text(encoding="ascii").splitlines()[1:] == made[1:]  # 0 names a version


def test_the_same_tokenizer_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        tokenizer_section(CASES["llama3"](tmp_path / name), 5000, name) for name in ("a", "b")
    )
    assert first == second


def _refusal(tokenizer: Tokenizer, vocab_size: int = 5000) -> str:
    with pytest.raises(ExportError) as caught:
        tokenizer_section(tokenizer, vocab_size, "folder")
    message = str(caught.value)
    assert message.startswith("folder: ")
    return message


@pytest.mark.parametrize("kind", ["digits", "prefix_space", "no_pattern", "removed", "punctuation"])
def test_unknown_pre_tokenizers_are_refused(tmp_path: Path, kind: str) -> None:
    message = _refusal(open_tokenizer(tiny.byte_level_folder(tmp_path / kind, kind)))
    assert "pre-tokenizer" in message or "it cuts text by" in message


def test_normalized_texts_are_refused(tmp_path: Path) -> None:
    from tokenizers import normalizers

    for i, steps in enumerate(([normalizers.NFKC()], [normalizers.NFC(), normalizers.Lowercase()])):
        folder = tiny.byte_level_folder(tmp_path / f"{i}", "gpt2", normalizers.Sequence(steps))
        assert f"normalizes text by ['{steps[-1].__class__.__name__}']" in _refusal(
            open_tokenizer(folder)
        )
    assert "normalizes text by a table" in _refusal(_trained(normalization_rule_name="nmt_nfkc"))


def test_a_token_that_is_looked_for_in_normalized_text_is_refused(tmp_path: Path) -> None:
    from tokenizers import AddedToken, normalizers

    token = AddedToken("<e\u0301>", normalized=True)
    folder = tiny.byte_level_folder(tmp_path / "t", "gpt2", normalizers.NFC(), (token,))
    assert "is looked for in normalized text" in _refusal(open_tokenizer(folder))


def test_a_metaspace_of_another_mark_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    CASES["metaspace_first"](folder)
    file = folder.with_name("t_json") / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["pre_tokenizer"]["replacement"] = "_"
    file.write_text(json.dumps(state), encoding="utf-8")
    assert "its Metaspace marks spaces by '_'" in _refusal(open_tokenizer(file.parent))


def test_sentencepiece_models_that_are_not_bpe_are_refused() -> None:
    assert "another kind than BPE" in _refusal(_trained(model_type="unigram"))


def test_spaces_behind_words_are_refused() -> None:
    # The section has no such rule and nothing looks for it by name: only the proof can find it.
    assert "as a package" in _refusal(_trained(treat_whitespace_as_suffix=True))


def _trained(**training: Any) -> Tokenizer:
    import sentencepiece

    out = io.BytesIO()
    settings = {"model_type": "bpe", "normalization_rule_name": "identity", **training}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.TEXTS[:40] * 9), model_writer=out, vocab_size=120,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **settings,
    )  # fmt: skip
    return Tokenizer(SentencePieceBackend(out.getvalue(), "trained"), SpecialTokens())


def test_more_ids_than_the_model_has_are_refused(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tiny.byte_level_folder(tmp_path / "t", "gpt2"))
    assert f"{tokenizer.vocab_size} ids and the model 399" in _refusal(tokenizer, 399)


def test_more_than_one_begin_token_is_refused(tmp_path: Path) -> None:
    backend = CASES["pieces"](tmp_path / "t").backend
    special = SpecialTokens(prefix_ids=(1, 1))
    assert "[1, 1] before a text" in _refusal(Tokenizer(backend, special))


@pytest.mark.parametrize("rule", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_with_rules_of_their_own_are_refused(tmp_path: Path, rule: str) -> None:
    from tokenizers import AddedToken

    token = AddedToken("<x>", **{rule: True})
    folder = tiny.byte_level_folder(tmp_path / "t", "gpt2", added=(token,))
    assert f"'<x>' asks for {rule}" in _refusal(open_tokenizer(folder))


def test_added_tokens_that_overlap_across_two_passes_are_refused(tmp_path: Path) -> None:
    folder = tiny.byte_level_folder(tmp_path / "t", "gpt2", added=("s>x",))
    assert "can overlap" in _refusal(open_tokenizer(folder))


def test_a_special_token_that_is_also_a_word_is_refused(tmp_path: Path) -> None:
    def edit(state: dict[str, Any]) -> None:
        state["added_tokens"][0]["content"] = "!!!!"
        state["model"]["vocab"]["!!!!"] = state["model"]["vocab"].pop("<pad>")

    assert "both cut out of texts" in _refusal(edited(tmp_path / "t", "llama3", edit))


def test_a_wrong_rule_does_not_pass_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_tokenizer(tiny.byte_level_folder(tmp_path / "t", "gpt2"))
    monkeypatch.setattr(byte_level_table, "_split_rule", lambda state, name: 3)
    assert "as a package" in _refusal(tokenizer)
