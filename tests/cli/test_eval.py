"""`bcquant eval ppl`: what it prints and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.cli import main

KEYS = {
    "model", "text", "perplexity", "nll", "num_tokens", "seq_len", "stride", "seconds",
    "tokens_per_s", "engine", "tier", "threads", "precision",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path / "model")


def test_json_is_one_object(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["eval", "ppl", str(model), "--seq-len", "32", "--stride", "16", "--max-tokens", "100"]
    assert main([*argv, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (set(result), err) == (KEYS, "")
    assert (result["num_tokens"], result["seq_len"], result["stride"]) == (99, 32, 16)
    assert (result["model"], result["text"]) == (str(model), "builtin")
    assert result["tokens_per_s"] == pytest.approx(99 / result["seconds"])


def test_text_of_a_file_and_the_line_for_people(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # the progress line is cut at the width
    text = tmp_path / "text.txt"
    text.write_text("some words " * 20, encoding="utf-8")
    assert main(["eval", "ppl", str(model), "--text", str(text), "--seq-len", "16"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("perplexity ") and "(windows of 16, stride 16)" in out
    assert out.count("\n") == 1
    assert "model" in err  # the progress bar


def test_gguf_and_folder_give_the_same_figure(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = []
    for path in (model, make_gguf_checkpoint("llama", tmp_path / "model.gguf")):
        assert main(["eval", "ppl", str(path), "--max-tokens", "80", "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out)["nll"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)  # both are float32 on disk


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["kl", "MODEL"], "what: invalid choice: 'kl'"),
        (["ppl"], "the following arguments are required: model"),
        (["ppl", "/nonexistent"], "/nonexistent"),
        (["ppl", "MODEL", "--text", "/nonexistent.txt"], "/nonexistent.txt: no such file"),
        (["ppl", "MODEL", "--stride", "2000"], "--stride is 2000; 1 to --seq-len (1024)"),
        (["ppl", "MODEL", "--seq-len", "1"], "--seq-len is 1"),
        (["ppl", "MODEL", "--max-tokens", "-1"], "--max-tokens is -1"),
    ],
)
def test_wrong_arguments_are_one_line(
    argv: list[str], named: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(model) if a == "MODEL" else a for a in argv]
    assert main(["eval", *given, "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert named in err
