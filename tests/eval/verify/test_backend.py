"""Which program runs what, and what is said when it cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bcquant.errors import CheckpointError, ConfigError
from bcquant.eval.verify.backend import backends, choose_backend, require
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.models.source import open_model

Fixture = Callable[..., Any]


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("model.onnx",), "onnxruntime"),
        (("model.onnx", "genai_config.json"), "onnxruntime_genai"),
        (("config.json", "model.safetensors"), "transformers"),
        (("config.json", "model.onnx"), "onnxruntime"),
    ],
)
def test_files_choose_the_program(tmp_path: Path, files: tuple[str, ...], chosen: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert choose_backend(tmp_path, None).name == chosen


def test_gguf_is_for_llama_cpp_and_core(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert choose_backend(path, None).name == "llama_cpp"
    assert choose_backend(path, "core").name == "core"
    with pytest.raises(ConfigError, match="onnxruntime does not run this kind of export"):
        choose_backend(path, "onnxruntime")
    with pytest.raises(ConfigError, match="did you mean 'llama_cpp'"):
        choose_backend(path, "llama_cp")


def test_names_are_those_of_the_files() -> None:
    assert [kind.name for kind in backends()] == [
        "onnxruntime_genai", "onnxruntime", "llama_cpp", "bcq_runtime", "transformers", "core",
    ]  # fmt: skip


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match="pip install llama-cpp-python"):
        require("llama_cpp", "llama-cpp-python")


@pytest.mark.judge
def test_a_graph_that_is_damaged_is_one_sentence(
    make_source: Fixture, make_export: Fixture, own: Fixture
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export = own(make_export(make_source(), "onnx"))
    (export / "model.onnx").write_bytes(b"\x08\x0anot a graph")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load it"):
        choose_backend(export, None).open(export, 64)
    (export / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the file does not exist"):
        choose_backend(export, None).open(export, 64)


def test_blocks_that_do_not_stay_in_memory_give_the_same_logits(
    make_source: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = CoreBackend(open_model(make_source()))
    wanted = source.logits([3, 4, 5])
    monkeypatch.setattr("bcquant.runtime.memory.available_memory", lambda: 1000)
    streamed = CoreBackend(open_model(make_source()))
    assert (streamed.logits([3, 4, 5]) == wanted).all()
    assert (streamed._resident, len(source._resident)) == ([], 2)
    source.close()
    streamed.close()


def test_w8a8_source_rounds_its_activations(make_source: Fixture) -> None:
    from bcquant.spec.quant_format import QuantFormat

    path = make_source("llama", "int-quantized", QuantFormat(8, -1, True, "int8_token"))
    backend = CoreBackend(open_model(path))
    import torch

    from bcquant.models.decoder import Decoder

    plain = Decoder.load(backend.source).forward(torch.tensor([[3, 4, 5]]))[0].numpy()
    gap = abs(backend.logits([3, 4, 5]) - plain).max()
    # int8 steps of 1/127 of each token's largest value, through 2 layers; measured 0.3
    assert 0.01 < gap < 2
    backend.close()


def test_pieces_are_the_tokenizer_s_special_ones(make_source: Fixture) -> None:
    byte_level = CoreBackend(open_model(make_source()))
    assert byte_level.pieces() == ["<pad>", "<s>", "</s>"]
    sentencepiece = CoreBackend(open_model(make_source("baichuan")))
    assert {"<unk>", "<s>", "</s>"} <= set(sentencepiece.pieces())
    byte_level.close()
    sentencepiece.close()
