"""`bcquant gptq` and `int8`: refusals before any work, the JSON report, where the output goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.cli import main

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
QUICK = ("--calib-tokens", "96", "--seq-len", "12")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint("llama", tmp_path / "model", **SMALL)


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command line that must end with status 2 before any work; its line on stderr."""

    def run(*argv: object) -> str:
        def work(*_: object) -> None:
            raise AssertionError("work began")

        monkeypatch.setattr("bcquant.pipeline.calibration.calibration_tokens", work)
        before = sorted(tmp_path.rglob("*"))
        assert main([str(a) for a in argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("bcquant: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["gptq", "MODEL", "--bits", "5"], "--bits: invalid choice: 5"),
        (["gptq", "MODEL", "--bits", "four"], "--bits: invalid int value: 'four'"),
        (["gptq", "MODEL", "--group-size", "7"], "group_size is 7; -1 (whole row) or a multiple"),
        (["gptq", "MODEL", "--group-size", "0"], "group_size is 0"),
        (["gptq", "MODEL", "--group-size", "24"], "group_size 24 is refused by GPTQ readers"),
        (["gptq", "MODEL", "--format", "awq"], "--format: invalid choice: 'awq'"),
        (["gptq", "MODEL", "--calib-tokens", "0"], "--calib-tokens is 0; at least 1 is needed"),
        (["gptq", "MODEL", "--seq-len", "0"], "--seq-len is 0; at least 1 is needed"),
        (["gptq", "MODEL", "--seed", "-1"], "--seed is -1"),
        (["gptq", "MODEL", "--keep-arch"], "--keep-arch: llama keeps its names anyway"),
        (["gptq", "MODEL", "--quiet"], "unrecognized arguments: --quiet"),
        (["gptq"], "the following arguments are required: model"),
        (["gptq", "/nonexistent/model"], "/nonexistent/model"),
        (["int8", "MODEL", "--scheme", "w4a4"], "--scheme: invalid choice: 'w4a4'"),
        (["int8", "MODEL", "--scheme", "w8a8", "--group-size", "16"], "--group-size 16: w8a8 has"),
        (["int8", "MODEL", "--group-size", "24"], "is not a multiple of group_size 24"),
        (["int8", "MODEL", "--bits", "4"], "unrecognized arguments: --bits 4"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_wrong_flags_are_one_line(
    argv: list[str], named: str, model: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    given = [model if a == "MODEL" else a for a in argv]
    assert named in refused(*given)


def test_3_bits_with_rows_that_words_do_not_fill_are_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    model = make_checkpoint("smollm2", tmp_path / "model")  # 48 columns
    line = refused("gptq", model, "--bits", "3", "--group-size", "16")
    assert "q_proj (48 x 48) cannot be written as gptq: out_features 48 is not a multiple" in line


def test_compressed_tensors_with_ragged_groups_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    model = make_checkpoint("smollm2", tmp_path / "model")
    line = refused("gptq", model, "--group-size", "32", "--format", "compressed-tensors")
    assert "in_features 48 is not a multiple of group_size 32" in line


def test_model_that_no_usual_group_size_divides_needs_the_flag(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    model = make_checkpoint("smollm2", tmp_path / "model")
    assert "no usual group size divides them, give --group-size" in refused("gptq", model)


def test_quantized_source_is_refused(
    model: Path,
    refused: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report_of(capsys, "gptq", model, "-o", tmp_path / "q")
    assert "is quantized already (gptq)" in refused("int8", tmp_path / "q")


def test_model_without_tokenizer_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "tokenizer.json").unlink()
    assert main(["gptq", str(model), "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "tokenizer" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "no such file or folder"),
        (b"", "holds no text"),
        (b"\xff\xfe\x00", "not UTF-8 text at byte 0"),
        (b"too short", "tokens of text for --calib-tokens, but 96 are needed"),
    ],
)
def test_bad_calibration_text_is_one_line(
    text: bytes | None,
    named: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    argv = ["gptq", model, *QUICK, "--calib", path, "-o", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert str(path) in err and named in err and err.count("\n") == 1
    assert not (tmp_path / "out.work").exists()


def report_of(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main([str(a) for a in (*argv, *QUICK, "--json")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.mark.parametrize("verb", ["gptq", "int8"])
def test_json_report_has_every_module_and_the_whole_model(
    verb: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = report_of(capsys, verb, model, "--lm-head", "-o", out)
    assert report.pop("out") == str(out)
    assert report == json.loads((out / "quant_report.json").read_text())
    assert len(report["modules"]) == 15
    assert report["modules"][-1]["module"] == "lm_head"
    for row in report["modules"]:
        assert row["candidate"] in row["losses"]
        # The guard: nothing that was tried is better than what was kept, rounding included.
        assert row["loss_after"] == min(row["losses"].values())
        assert 0 < row["loss_after"] <= row["loss_before"] == row["losses"]["rtn"]
        assert 0 < row["damp_percent"] < 1
        assert row["seconds"] >= 0
        assert row["note"] == ""
    figures = report["whole_model"]
    assert figures["tokens"] == 11  # one sequence of 12
    increase = 100 * (figures["perplexity_quantized"] / figures["perplexity_float"] - 1)
    assert figures["increase_percent"] == pytest.approx(increase, abs=1e-9)  # same doubles
    assert figures["kl_mean"] > 0
    assert 0 <= figures["top1_agreement"] <= 1
    assert set(report["source"]["sha256"]) == {p.name for p in model.iterdir()}


def test_table_names_the_output_seed_and_calibration(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["gptq", model, *QUICK, "--seed", "7", "-o", out]
    assert main([str(a) for a in argv]) == 0
    printed = capsys.readouterr().out
    assert f"written: {out}\n" in printed
    assert "seed 7, calibration builtin (pydoc_data.topics)" in printed
    for kind in ("q_proj", "down_proj", "perplexity float", "top-1 agreement"):
        assert kind in printed


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["gptq", "model"], "model-gptq-4bit"),
        (["gptq", "model/", "--bits", "3"], "model-gptq-3bit"),
        (["gptq", "model/model.safetensors"], "model/model-gptq-4bit"),
        (["int8", "model"], "model-int8-w8a16"),
        (["int8", "./model", "--scheme", "w8a8"], "model-int8-w8a8"),
        (["int8", "tiny.gguf"], "tiny-int8-w8a16"),
        (["gptq", "."], "model-gptq-4bit"),
    ],
)
def test_output_is_named_after_the_model_and_lies_beside_it(
    argv: list[str], name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "tiny.gguf" in argv:
        make_gguf_checkpoint("llama", tmp_path / "tiny.gguf", **SMALL)
    monkeypatch.chdir(model if "." in argv else tmp_path)
    report_of(capsys, *argv)
    assert (tmp_path / name / "bcquant_manifest.json").is_file()


def test_output_of_a_hub_id_lies_in_the_current_folder() -> None:
    from bcquant.cli.quantize_flags import default_output

    assert default_output("org/name", "gptq-4bit") == Path("name-gptq-4bit")
    assert default_output("org/name@v1.0", "gptq-4bit") == Path("name-gptq-4bit")
