"""Perplexity of a package by its runtime, against torch over its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint
from tiny_package import tiny_package
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.errors import ConfigError
from bcquant.eval import package_perplexity as module
from bcquant.eval.package_perplexity import package_perplexity
from bcquant.eval.perplexity import evaluation_text, measure_perplexity
from bcquant.kernels.runtime_native import RuntimeOptions
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

EXACT = RuntimeOptions(activations="exact", kv_type="f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` and `m.bcq`."""
    path = tmp_path_factory.mktemp("package")
    source = make_checkpoint("llama3", path / "source", dtype="F16")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    assert main(["export", "mobile", str(source), "-o", str(path / "m.bcq")]) == 0
    return path


@pytest.mark.parametrize(("seq_len", "stride"), [(32, None), (32, 7), (61, 30)])
def test_exact_figure_is_that_of_torch(
    seq_len: int, stride: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 10)  # several calls a window
    text = evaluation_text("builtin")
    with open_model(folder / "source") as source:
        wanted = measure_perplexity(source, text, seq_len, stride, 150)
    seen: list[tuple[int, int]] = []
    mine, facts = package_perplexity(
        folder / "m.bcq", text, seq_len, stride, 150, EXACT,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert mine.num_tokens == wanted.num_tokens
    assert abs(mine.nll - wanted.nll) < 1e-4  # the bound of test_native_perplexity.py
    assert seen[-1][0] == seen[-1][1]
    assert (facts.engine, facts.precision) == ("native", "exact")


def test_the_verb_measures_a_package(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--seq-len", "32", "--max-tokens", "100", "--json"]
    native = ["--engine", "native", "--threads", "1", "--precision", "exact"]
    assert main(["eval", "ppl", str(folder / "m.bcq"), *native, *common]) == 0
    package = json.loads(capsys.readouterr().out)
    assert main(["eval", "ppl", str(folder / "source"), *native, *common]) == 0
    checkpoint = json.loads(capsys.readouterr().out)
    assert set(package) == set(checkpoint) and package["threads"] == 1
    assert package["num_tokens"] == checkpoint["num_tokens"]
    # Keys and values are float32 in both; only the order of sums differs.
    assert package["nll"] == pytest.approx(checkpoint["nll"], abs=1e-4)


def test_torch_does_not_run_a_package(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "ppl", str(folder / "m.bcq"), "--json"]) == 2
    assert "give --engine native" in capsys.readouterr().err


def test_generate_says_that_torch_does_not_run_a_package(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["generate", str(folder / "m.bcq"), "--prompt", "a", "--max-new-tokens", "4"]
    assert main([*argv, "--engine", "torch"]) == 2
    assert "a package runs in the native engine" in capsys.readouterr().err
    assert main([*argv, "--engine", "native", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == "native"


def test_a_window_longer_than_the_context_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seq-len is 99999; .* positions"):
        package_perplexity(folder / "m.bcq", "some text", 99999)


def test_a_package_without_tokenizer_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_package().write(tmp_path))
    assert main(["eval", "ppl", path, "--engine", "native", "--seq-len", "8", "--json"]) == 2
    assert "it has no tokenizer" in capsys.readouterr().err
