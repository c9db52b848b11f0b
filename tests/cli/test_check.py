"""`bcquant check`: the table and the JSON, exports that are promised, and errors in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_awq import store_as_awq
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.loaders._survey import loaders
from bcquant.spec.quant_format import QuantFormat


def make(
    folder: Path, fmt: QuantFormat | None = None, family: str = "llama", hidden_size: int = 64
) -> Path:
    make_checkpoint(family, folder, dtype="F16", hidden_size=hidden_size, intermediate_size=128)
    return folder if fmt is None else quantize_folder(folder, "v1", fmt)


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["check", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    return {row["loader"]: row for row in report["loaders"]}


def test_every_program_answers_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(make(tmp_path, QuantFormat(4, 32)), capsys)
    assert list(found) == [loader.name for loader in loaders()]
    assert all(row["loads"] in ("yes", "no", "unknown") for row in found.values())
    assert all(row["reason"] for row in found.values())
    assert found["transformers"]["tested"] and not found["vLLM"]["tested"]
    assert found["ONNX Runtime CPU"]["exported"]["tested"]
    assert not found["ONNX Runtime WebGPU"]["exported"]["tested"]


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("ONNX Runtime CPU", ""),
        ("ONNX Runtime CUDA", " --float16"),
        ("ONNX Runtime WebGPU", " --target web --variant ort"),
        ("onnxruntime-genai", " --target genai"),
    ],
)
def test_a_promised_export_can_be_made_and_is_then_a_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, flags: str
) -> None:
    pytest.importorskip("onnx", reason="the onnx package is not installed")
    path = make(tmp_path / "m", QuantFormat(4, 32))
    row = check(path, capsys)[program]
    assert row["loads"] == "no"
    assert row["exported"]["loads"] == "yes"
    command = row["exported"]["command"]
    assert command == f"bcquant export onnx {path}{flags}"
    assert main([*command.split()[1:], "-o", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert check(tmp_path / "out", capsys)[program]["loads"] == "yes"


def test_the_promised_gguf_is_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = check(make(tmp_path / "m", QuantFormat(4, 32)), capsys)["llama.cpp"]
    assert row["exported"]["loads"] == "yes"
    out = str(tmp_path / "out.gguf")
    assert main([*row["exported"]["command"].split()[1:], "-o", out]) == 0
    capsys.readouterr()
    assert check(Path(out), capsys)["llama.cpp"]["loads"] == "yes"


def test_a_lossy_export_says_so_in_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store_as_awq(make(tmp_path / "m"), QuantFormat(4, 16, False))
    exported = check(path, capsys)["llama.cpp"]["exported"]
    # Groups of 16 fit no block of GGUF: the weights become float16.
    assert exported["command"].endswith("--allow-lossy")


def test_what_an_exporter_refuses_is_a_no_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "m", QuantFormat(4, 32), "baichuan13b", 96)
    exported = check(path, capsys)["llama.cpp"]["exported"]
    assert (exported["loads"], exported["command"]) == ("no", "")
    assert exported["reason"].startswith("cannot be exported: ")


def test_a_model_that_bcquant_cannot_open_promises_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (path / "config.json").write_text(json.dumps(config))
    found = check(path, capsys)
    assert found["bcquant"]["loads"] == "no"
    assert all(row["exported"] is None for row in found.values())


def test_table_shows_export_and_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", str(make(tmp_path, QuantFormat(4, 32)))]) == 0
    out = capsys.readouterr().out
    assert "GPTQ v1, 4-bit, group 32, symmetric" in out
    assert "exported: yes, tested" in out and "pip install llama-cpp-python" in out
    assert "it reads GGUF only" not in out  # the answer on the export stands in its place
    assert "Rules as of bcquant" in out


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_nothing_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["check", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
