"""Sections that are no tensors: each is there, reads back, and is left out where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.errors import CheckpointError, ExportError
from bcquant.exporters.mobile import EXPORTER
from bcquant.exporters.mobile.options import MobileOptions
from bcquant.io.package import open_package
from bcquant.io.package_index import (
    CHAT_FRAMES,
    CHAT_TEMPLATE,
    GENERATION,
    ORIGIN,
    TOKENIZER,
)
from bcquant.io.package_tokenizer import (
    BYTE_LEVEL,
    CONTROL,
    SENTENCEPIECE,
    TokenizerTables,
    read_tokenizer,
)
from bcquant.models.source import open_model
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.export_plan import ExportPlan

Export = Callable[..., ExportPlan]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tables_of(path: Path) -> TokenizerTables:
    with open_package(path) as package:
        section = package.find(TOKENIZER)
        assert section is not None
        return read_tokenizer(package.data(section), package.model.vocab_size, str(path))


def settings(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **changes}))


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", BYTE_LEVEL), ("gguf", BYTE_LEVEL), ("baichuan", SENTENCEPIECE)]
)
def test_a_tokenizer_is_there_token_by_token(
    family: str, kind: int, tmp_path: Path, export: Export
) -> None:
    if family == "gguf":
        source = make_gguf_checkpoint("llama", tmp_path / "m.gguf")
    else:
        source = make_checkpoint(family, tmp_path / "m", dtype="F16")
    plan = export(source, tmp_path / "m.bcq")
    assert not any("driven by ids" in note for note in plan.notes)
    tables, tokenizer = tables_of(tmp_path / "m.bcq"), open_tokenizer(source)
    assert tables.kind == kind and tables.num_tokens == tokenizer.vocab_size
    for token_id in range(tables.num_tokens):
        if tables.types[token_id] == CONTROL:
            assert tables.token(token_id).decode() == tokenizer.backend.piece(token_id)
        elif kind == BYTE_LEVEL:
            assert tables.token(token_id) == tokenizer.backend.token_bytes(token_id)


def test_the_tokenizers_own_special_tokens_are_the_models(tmp_path: Path, export: Export) -> None:
    """As in generation: the tokenizer's begin token, its end token before those of the config."""
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16", eos_token_id=7)
    export(source, tmp_path / "m.bcq")
    tokenizer = open_tokenizer(source)
    with open_package(tmp_path / "m.bcq") as package:
        assert package.model.eos_ids == tokenizer.eos_ids == (2, 7)
        assert package.model.bos_id == tokenizer.bos_id


def test_a_chat_template_and_its_frames(tmp_path: Path, export: Export) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    settings(source, "tokenizer_config.json", chat_template=TEMPLATE)
    plan = export(source, tmp_path / "m.bcq")
    assert not plan.notes
    with open_package(tmp_path / "m.bcq") as package:
        assert package.text(CHAT_TEMPLATE) == TEMPLATE
        frames = package.json(CHAT_FRAMES)
    assert frames is not None and frames["bos"] == "<s>"
    assert frames["roles"]["user"] == ["[user]", "\n"]


def test_a_template_that_counts_has_no_frames_and_a_note(tmp_path: Path, export: Export) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    template = TEMPLATE.replace("[{{ m.role }}]", "{{ loop.index }}")
    settings(source, "tokenizer_config.json", chat_template=template)
    plan = export(source, tmp_path / "m.bcq")
    assert len(plan.notes) == 1 and "an app has to render it (section 65)" in plan.notes[0]
    with open_package(tmp_path / "m.bcq") as package:
        assert package.text(CHAT_TEMPLATE) == template and package.find(CHAT_FRAMES) is None


def test_generation_defaults(tmp_path: Path, export: Export) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    settings(source, "generation_config.json", temperature=0.5, top_k=40)
    export(source, tmp_path / "m.bcq")
    with open_package(tmp_path / "m.bcq") as package:
        assert package.json(GENERATION) == {"temperature": 0.5, "top_k": 40}


def test_what_a_model_does_not_have_is_left_out(
    tmp_path: Path, export: Export, make_float: Callable[..., Path]
) -> None:
    plan = export(make_float(tmp_path / "m"), tmp_path / "m.bcq")
    assert plan.notes == (f"{tmp_path / 'm'} has no tokenizer, so the package is driven by ids",)
    with open_package(tmp_path / "m.bcq") as package:
        assert [s.kind for s in package.sections if s.kind >= TOKENIZER] == [ORIGIN]


def test_a_template_that_utf_8_cannot_hold_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    settings(source, "tokenizer_config.json", chat_template="{# \ud800 #}x")
    with open_model(source) as opened, pytest.raises(ExportError) as caught:
        EXPORTER.prepare(opened, MobileOptions()).validate(lambda *a: None)
    assert "the chat template has a lone surrogate at character 3" in str(caught.value)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    source = make_checkpoint("llama", tmp_path / "m", dtype="F16")
    (source / "tokenizer.json").write_text("{")
    with open_model(source) as opened, pytest.raises(CheckpointError):
        EXPORTER.prepare(opened, MobileOptions()).validate(lambda *a: None)
