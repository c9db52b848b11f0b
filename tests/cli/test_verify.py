"""`bcquant verify`: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import planted_faults as faults
import pytest
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge
pytest.importorskip("onnxruntime", reason="onnxruntime, which runs the exports, is not installed")
pytest.importorskip("llama_cpp", reason="llama-cpp-python, which runs GGUF, is not installed")

SHORT = ["--max-tokens", "96", "--seq-len", "48", "--new-tokens", "6"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A quantized source, its exports, and another model."""
    folder = tmp_path_factory.mktemp("verify")
    source = make_checkpoint("llama", folder / "source", dtype="F16")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    other = make_checkpoint("llama", folder / "other", dtype="F16", vocab_size=400)
    paths = {"source": source, "other": other}
    for kind, name in (("onnx", "onnx"), ("gguf", "model.gguf")):
        paths[kind] = folder / name
        assert main(["export", kind, str(source), "-o", str(paths[kind])]) == 0
    return paths


@pytest.fixture
def own(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same exports, to be damaged."""
    return {
        "source": made["source"],
        "other": made["other"],
        "onnx": Path(shutil.copytree(made["onnx"], tmp_path / "onnx")),
        "gguf": Path(shutil.copy(made["gguf"], tmp_path / "model.gguf")),
    }


@pytest.mark.parametrize("kind", ["onnx", "gguf"])
def test_right_export_passes_and_gets_its_certificate(
    kind: str, own: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(own["source"]), str(own[kind]), *SHORT]) == 0
    out, err = capsys.readouterr()
    path = own["onnx"] / "certificate.json"
    if kind == "gguf":
        path = own["gguf"].with_name("model.gguf.certificate.json")
    assert out.splitlines()[-1] == "pass" and f"certificate: {path}" in err
    for check in ("tokens", "weights", "logits", "perplexity", "greedy"):
        assert check in out
    certificate = json.loads(path.read_text())
    assert certificate["verdict"] == "pass"
    assert certificate["settings"]["max_tokens"] == 96


def test_damaged_export_fails_and_is_named(
    own: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.layers.0.self_attn.v_proj"
    faults.edit_onnx_tensor(own["onnx"], f"{name}.b", faults.swap_first_nibbles, "u1")
    argv = ["verify", str(own["source"]), str(own["onnx"]), *SHORT, "--no-certificate"]
    assert main(argv) == 1
    out, _ = capsys.readouterr()
    assert f"first difference: {name}.weight" in out and out.splitlines()[-1] == "fail"
    assert not (own["onnx"] / "certificate.json").exists()


def test_json_is_the_certificate_alone(
    own: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["verify", str(own["source"]), str(own["gguf"]), *SHORT, "--json", "--no-certificate"]
    assert main([*argv, "--backend", "core"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["backend"], err) == ("core", "")


def test_prompts_and_text_of_files(
    own: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, text = tmp_path / "prompts.txt", tmp_path / "text.txt"
    prompts.write_text("one\n\ntwo words\n", encoding="utf-8")
    text.write_text("some words " * 40, encoding="utf-8")
    argv = ["verify", str(own["source"]), str(own["onnx"]), "--no-certificate", "--json", *SHORT]
    assert main([*argv, "--prompts", str(prompts), "--text", str(text)]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["prompts"] == ["one", "two words"]
    assert settings["text_name"] == str(text)


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (lambda own: cut(own["gguf"], 1000), "gguf", "download it again"),
        (lambda own: cut(own["onnx"] / "model.onnx.data", 1000), "onnx", "model.onnx.data"),
        (lambda own: cut(own["onnx"] / "model.onnx", 700), "onnx", "not a readable ONNX file"),
        (lambda own: (own["onnx"] / "model.onnx.data").unlink(), "onnx", "does not exist"),
        (lambda own: (own["onnx"] / "model.onnx").unlink(), "onnx", "not an export"),
        (lambda own: own["gguf"].unlink(), "gguf", "no such file or folder"),
        (lambda own: own["gguf"].write_bytes(b"GGUF"), "gguf", "the version ends at byte 8"),
        (lambda own: own.update(source=own["other"]), "gguf", "an export of another model"),
        (lambda own: own.update(source=own["other"]), "onnx", "an export of another model"),
        (lambda own: own.update(onnx=own["other"].parent), "onnx", "not an export"),
        (lambda own: (own["onnx"] / "certificate.json").mkdir(), "onnx", "--no-certificate"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    fault: object,
    kind: str,
    said: str,
    own: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(fault)
    fault(own)
    assert main(["verify", str(own["source"]), str(own[kind]), *SHORT, "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("bcquant: error: ") and err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-tokens", "1"], "--max-tokens is 1"),
        (["--seq-len", "0"], "--seq-len is 0"),
        (["--new-tokens", "0"], "--new-tokens is 0"),
        (["--new-tokens", "9999"], "lower --new-tokens"),
        (["--max-weight-error", "2"], "--max-weight-error is 2.0"),
        (["--backend", "nothing"], "'nothing' is unknown"),
        (["--prompts", "/none"], "/none"),
        (["--text", "/none"], "/none"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], said: str, made: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(made["source"]), str(made["gguf"]), "--json", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
