"""Perplexity by the native engine against the torch judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.eval import native_perplexity
from bcquant.eval.native_perplexity import native_scorer, nll_sum
from bcquant.eval.perplexity import evaluation_text, measure_perplexity
from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.spec.quant_format import QuantFormat

W8A8 = QuantFormat(8, -1, True, "int8_token")


def checkpoint(folder: Path, target: str, fmt: QuantFormat) -> Path:
    return quantize_folder(make_checkpoint("llama3", folder, dtype="F16"), target, fmt)


@pytest.mark.parametrize(("seq_len", "stride"), [(32, None), (32, 7), (1000, None)])
def test_exact_figure_is_that_of_torch(
    seq_len: int, stride: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_perplexity, "_LOGITS_BYTES", 4 * 384 * 10)  # 10 tokens at once
    text = evaluation_text("builtin")
    with open_model(checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32))) as source:
        wanted = measure_perplexity(source, text, seq_len, stride, 150)
        model = NativeModel.load(source, NativeOptions(precision="exact"))
        seen: list[tuple[int, int]] = []
        score = native_scorer(model, lambda done, total: seen.append((done, total)))
        mine = measure_perplexity(source, text, seq_len, stride, 150, score=score)
    assert mine.num_tokens == wanted.num_tokens
    assert abs(mine.nll - wanted.nll) < 1e-4  # the bound of test_native_model.py on logits
    assert seen[-1][0] == seen[-1][1]


def test_w8a8_figure_is_that_of_torch_which_rounds_activations_too(tmp_path: Path) -> None:
    text = evaluation_text("builtin")
    with open_model(checkpoint(tmp_path / "m", "int-quantized", W8A8)) as source:
        wanted = measure_perplexity(source, text, 64, None, 200).nll
        model = NativeModel.load(source)
        assert model.precision == "int8_token"
        mine = measure_perplexity(source, text, 64, None, 200, score=native_scorer(model)).nll
        model = NativeModel.load(source, NativeOptions(precision="exact"))
        exact = measure_perplexity(source, text, 64, None, 200, score=native_scorer(model)).nll
    # The same rounding, but a value on a tie may fall either way, and keys are float16 here.
    assert abs(mine - wanted) < 0.02
    assert exact != mine


def test_nll_is_that_of_a_softmax() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]], np.float32)
    wanted = -np.log(np.exp(2.0) / np.exp([1.0, 2.0, 3.0]).sum()) + 1000.0
    assert nll_sum(logits, np.array([1, 1])) == pytest.approx(wanted, rel=1e-7)


def test_verb_names_engine_tier_and_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # the progress line is cut at the width
    from bcquant.kernels import native

    path = str(checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32)))
    argv = ["eval", "ppl", path, "--max-tokens", "80", "--engine", "native", "--threads", "2"]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [result[k] for k in ("engine", "threads", "precision")] == ["native", 2, "int8"]
    assert result["tier"] == native.active_tier()
    assert err.startswith("native engine: tier ")
    assert main([*argv, "--precision", "exact"]) == 0
    assert "windows" in capsys.readouterr().err  # the progress bar


def test_native_measurement_runs_without_torch(tmp_path: Path) -> None:
    path = str(checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32)))
    code = (
        "import sys\n"
        "from bcquant.cli import main\n"
        f"argv = ['eval', 'ppl', {path!r}, '--max-tokens', '40', '--engine', 'native']\n"
        "assert main(argv) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("perplexity ")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--precision", "int8"], "--precision int8 needs --engine native"),
        (["--engine", "native", "--threads", "0"], "--threads is 0"),
        (["--engine", "native"], "head_dim is 8"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_checkpoint("baichuan13b", tmp_path / "m", dtype="F16")
    assert main(["eval", "ppl", str(path), "--json", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert named in err
