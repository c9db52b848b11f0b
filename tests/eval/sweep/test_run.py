"""A whole sweep of a tiny model: rows, cache, what is missing, what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bcquant.cli import main
from bcquant.errors import ConfigError
from bcquant.eval.sweep import run as sweep
from bcquant.eval.sweep.point import MakeJob, Wish, find_tool, tool_names
from bcquant.eval.sweep.recipes import recipe_of
from bcquant.eval.sweep.tools import bcquant as tool_file
from bcquant.spec.recipe import CalibOptions

POINTS = ["bcquant 4-bit g32 sym", "onnxruntime rtn 4-bit g32 sym", "hqq 4-bit g32"]
WISH = Wish((4,), (32,), ("sym", "w8a8"), ("default",), (3.5,))


def arguments(tiny: Path, out: Path, *more: str) -> list[str]:
    return [
        "bench", "quality", str(tiny), "--out", str(out), "--bits", "4", "--group-size", "32",
        "--schemes", "sym", "--calib-tokens", "256", "--eval-tokens", "96", "--no-speed",
        "--no-plot", *more,
    ]  # fmt: skip


def test_every_tool_offers_points_with_labels_of_their_own() -> None:
    for name in tool_names():
        points = find_tool(name).points(WISH)
        labels = [label for label, _ in points]
        assert labels and len(set(labels)) == len(labels), name
        settings = [json.dumps(found, sort_keys=True) for _, found in points]
        assert len(set(settings)) == len(settings), name
    assert tool_names()[0] == "bcquant"


def test_our_points_are_recipes() -> None:
    found = {}
    for label, settings in find_tool("bcquant").points(WISH):
        fmt = recipe_of(settings, CalibOptions()).format
        found[label] = (fmt.bits, fmt.group_size, fmt.activation)
    assert found == {
        "4-bit g32 sym": (4, 32, "none"),
        "3.5 bpw g32 sym": (4, 32, "none"),
        "w8a8": (8, -1, "int8_token"),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sweep_goes_on_from_its_rows(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    # Whoever edits the solvers while this runs changes the key of our row.
    monkeypatch.setattr(tool_file, "_CODE", ())
    # An interpreter without hqq, whatever is installed here.
    real = sweep.versions
    monkeypatch.setattr(
        sweep, "versions",
        lambda python, names: dict.fromkeys(names) if "hqq" in names else real(python, names),
    )  # fmt: skip
    asked = arguments(tiny, tmp_path / "out", "--peers", "onnxruntime", "hqq", "--match", *POINTS)
    assert main([*asked, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    ours, ort, hqq = first["rows"]
    assert ours["bits_per_weight"] == ort["bits_per_weight"] == 4.5
    assert ours["texts"]["builtin"]["tokens"] == 95
    assert hqq["problem"].startswith("not installed:") and hqq["texts"] == {}
    assert not list((tmp_path / "out" / "work").iterdir())

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a finished row is not measured again")

    monkeypatch.setattr(sweep, "run_child", refuse)
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first["rows"]
    table = (tmp_path / "out" / "quality.md").read_text(encoding="utf-8")
    assert (
        "| bcquant | 4-bit g32 sym | 4.500 |" in table and "hqq 4-bit g32: not installed" in table
    )


def test_a_point_that_fails_is_a_row_and_an_exit_status(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Scales alone take half a bit a weight in groups of 32.
    asked = arguments(tiny, tmp_path / "out", "--peers", "none", "--target-bpw", "0.5", "--json")
    assert main([*asked, "--match", "bcquant 0.5 bpw"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["problem"].startswith("failed: bcquant ended with status 1")
    assert not (tmp_path / "out" / "rows").exists() or not list(
        (tmp_path / "out" / "rows").iterdir()
    )


def test_an_interrupted_judge_does_not_quantize_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "bcquant.done.json").write_text('{"seconds": 7.0, "peak_mb": 8.0}')

    def refuse(child: str, job: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError("it is quantized already")

    job = MakeJob({}, None, tmp_path, refuse, Path(), 1)  # type: ignore[arg-type]
    made = find_tool("bcquant").make(job)
    assert (made.model, made.seconds, made.peak_mb) == (tmp_path / "model", 7.0, 8.0)


def test_the_calibration_text_is_no_text_to_judge_on(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Some words of a text. " * 400)
    options = sweep.SweepOptions(
        {"a": str(text)}, CalibOptions(str(text), 128), WISH, ("bcquant",), {}, 64
    )
    with pytest.raises(ConfigError, match="it is the calibration text"):
        list(sweep.run_sweep(str(tiny), options, tmp_path / "out", lambda what, done, total: None))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--peers", "hqqq"], "--peers 'hqqq' is unknown"),
        (["--python", "hqq"], "NAME=VALUE is needed"),
        (["--text", "a=x", "--text", "a=y"], "each name once"),
        (["--quality", "perfect"], "--quality 'perfect' is unknown"),
        (["--match", "no such point"], "no point is left"),
        (["--eval-tokens", "1"], "at least 2"),
    ],
)
def test_wrong_flags_are_one_line(
    tiny: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tiny, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err


def test_points_are_listed_without_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "nothing", tmp_path / "out", "--list")) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "bcquant 4-bit g32 sym" and "llama_cpp Q4_K_M imatrix" in listed
    assert not (tmp_path / "out").exists()
