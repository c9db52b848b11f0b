"""Generation defaults in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.cli import main
from bcquant.exporters.gguf.sampling import sampling_metadata
from bcquant.io.checkpoint import open_checkpoint
from bcquant.models.source import open_model


def written(folder: Path, settings: dict[str, object]) -> dict[str, object]:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with open_model(folder) as source:
        return {key: value.data for key, value in sampling_metadata(source).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("m") / "tiny", dtype="F16")


def test_settings_have_their_keys(folder: Path) -> None:
    settings = {
        "do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.125,
        "repetition_penalty": 1.25, "eos_token_id": 2, "transformers_version": "4.0",
    }  # fmt: skip
    assert written(folder, settings) == {
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.75,
        "general.sampling.min_p": 0.125,
        "general.sampling.penalty_repeat": 1.25,
    }


def test_no_sampling_is_temperature_zero(folder: Path) -> None:
    assert written(folder, {"do_sample": False, "temperature": 0.7}) == {
        "general.sampling.temp": 0.0
    }


@pytest.mark.parametrize("value", ["hot", None, True, [1], 1e300])
def test_what_is_no_setting_is_left_out(value: object, folder: Path) -> None:
    assert written(folder, {"temperature": value, "top_k": value}) == {}


def test_the_file_holds_them_and_a_gguf_source_keeps_them(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.25, "top_k": 7}')
    out = tmp_path / "a.gguf"
    assert main(["export", "gguf", str(folder), "-o", str(out), "--json"]) == 0
    again = tmp_path / "b.gguf"
    assert main(["export", "gguf", str(out), "-o", str(again), "--json"]) == 0
    for path in (out, again):
        with open_checkpoint(path) as reader:
            found = {k: v for k, v in reader.metadata.items() if k.startswith("general.sampling.")}
        assert found == {"general.sampling.temp": 0.25, "general.sampling.top_k": 7}


def test_a_gguf_source_without_settings_has_none(tmp_path: Path) -> None:
    with open_model(make_gguf_checkpoint("llama", tmp_path / "m.gguf")) as source:
        assert sampling_metadata(source) == {}
