from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from factory import make_tiny

from bcquant.cli import main


@pytest.fixture(scope="module")
def model(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny("llama", tmp_path_factory.mktemp("model"), vocab_size=700)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(byte_level / name, folder / name)
    return folder


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = main(["generate", *argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_text_goes_to_stdout_and_the_rest_to_stderr(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(model), "--prompt", "你好", "--max-new-tokens", "8"]
    status, out, err = _run(capsys, *argv)
    assert status == 0
    assert err.startswith("torch engine (not a quantized checkpoint")
    assert "parameters in float32" in err
    assert "tokens/s" in err
    _, as_json, _ = _run(capsys, *argv, "--json")
    assert out == json.loads(as_json)["text"] + "\n"


def test_json_is_one_object(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--max-new-tokens", "4", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.9"]
    argv += ["--repetition-penalty", "1.1", "--seed", "5", "--json", "--chat"]
    status, out, _ = _run(capsys, str(model), "--prompt", "hi", *argv)
    result = json.loads(out)
    assert status == 0
    assert len(result["ids"]) == result["num_new_tokens"]
    assert set(result) == {
        "text", "ids", "num_prompt_tokens", "num_new_tokens",
        "prefill_s", "decode_s", "stop_reason", "tokens_per_s",
        "engine", "tier", "threads", "precision",
    }  # fmt: skip


def test_wrong_option_is_told_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(tmp_path / "nothing"), "--prompt", "a", "--top-p", "2"]
    status, out, err = _run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err == "bcquant: error: top_p is 2.0; above 0 and at most 1 is needed\n"


def test_missing_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = _run(capsys, str(tmp_path / "nothing"), "--prompt", "a")
    assert status == 2
    assert err.count("\n") == 1


def test_native_engine_is_named_on_stderr_and_in_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_quantized import quantize_folder

    from bcquant.kernels import native
    from bcquant.spec.quant_format import QuantFormat

    folder = tmp_path / "q"
    shutil.copytree(model, folder)
    quantize_folder(folder, "v1", QuantFormat(4, 32))
    argv = [str(folder), "--prompt", "a", "--max-new-tokens", "3", "--threads", "2"]
    status, out, err = _run(capsys, *argv)
    tier = native.active_tier()
    assert status == 0
    assert err.count("native engine:") == 1
    assert f"tier {tier}, 2 threads, precision int8" in err
    _, as_json, _ = _run(capsys, *argv, "--precision", "exact", "--json")
    result = json.loads(as_json)
    assert [result[k] for k in ("engine", "tier", "threads", "precision")] == [
        "native", tier, 2, "exact",
    ]  # fmt: skip
    status, out, err = _run(capsys, *argv, "--engine", "torch", "--precision", "int8")
    assert (status, out, err.count("\n")) == (2, "", 1)
