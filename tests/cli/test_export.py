"""The flow of `bcquant export`: plan, validate, refuse or write; with an exporter made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factory import make_tiny

from bcquant import registry
from bcquant.cli import main
from bcquant.spec.export_plan import Exporter, ExportPlan, Progress, TensorPlan

EXACT = TensorPlan("model.norm", "F32", 4)
LOSSY = TensorPlan("lm_head", "Q4_1", 8, None)


class Job:
    """Notes what it was asked to do; `measured` is the lossy tensor's error."""

    def __init__(self, plan: ExportPlan, measured: float, calls: list[str]) -> None:
        self._plan, self._measured, self._calls = plan, measured, calls

    def plan(self) -> ExportPlan:
        self._calls.append("plan")
        return self._plan

    def validate(self, progress: Progress) -> ExportPlan:
        self._calls.append("validate")
        progress("lm_head", 1, 1)
        tensors = (EXACT, TensorPlan("lm_head", "Q4_1", 8, self._measured))
        return ExportPlan("fake", self._plan.files, tensors)

    def write(self, out: Path, progress: Progress) -> tuple[Path, ...]:
        self._calls.append("write")
        out.write_text("written")
        return (out,)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return install(monkeypatch, measured=0.25)


def install(
    monkeypatch: pytest.MonkeyPatch,
    measured: float,
    refusals: tuple[str, ...] = (),
    is_verifiable: bool = True,
) -> list[str]:
    done: list[str] = []
    plan = ExportPlan("fake", (("model.fake", 12),), (EXACT, LOSSY), refusals)
    exporter = Exporter(
        "fake",
        "write nothing of use",
        lambda parser: None,
        lambda args: None,
        lambda path: Path(f"{path.name}.fake"),
        lambda source, options: Job(plan, measured, done),
        is_verifiable=is_verifiable,
    )
    load = registry.load

    def fake_load(package: str, key: str, attribute: str) -> Any:
        return exporter if key == "fake" else load(package, key, attribute)

    names = registry.names
    monkeypatch.setattr(registry, "load", fake_load)
    monkeypatch.setattr(
        registry,
        "names",
        lambda package: ["fake"] if package == "bcquant.exporters" else names(package),
    )
    return done


def export(model: Path, *flags: str) -> int:
    return main(["export", "fake", str(model), *flags])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("m") / "tiny")


def test_lossy_export_needs_permission(model, calls, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(model, "-o", str(out)) == 2
    assert calls == ["plan", "validate"] and not out.exists()
    err = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 2 tensors would change" in err
    assert "lm_head as Q4_1 (relative error 0.25)" in err and "--allow-lossy" in err

    assert export(model, "-o", str(out), "--allow-lossy") == 0
    assert out.read_text() == "written"
    assert f"bcquant verify {model} {out} --max-weight-error 0.26\n" in capsys.readouterr().out


def test_exact_export_needs_none(model, monkeypatch, tmp_path):
    calls = install(monkeypatch, measured=0.0)
    assert export(model, "-o", str(tmp_path / "out")) == 0
    assert calls == ["plan", "validate", "write"]


def test_dry_run_prints_the_plan_and_writes_nothing(model, calls, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(model, "-o", str(out), "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["out"], said["written"], said["num_bytes"]) == (str(out), False, 12)
    assert [t["error"] for t in said["tensors"]] == [0.0, 0.25]
    assert calls == ["plan", "validate"] and list(tmp_path.iterdir()) == []


def test_refusal_ends_it_before_anything_is_read(model, monkeypatch, tmp_path, capsys):
    calls = install(monkeypatch, 0.0, refusals=("groups of 24 are no power of two",))
    assert export(model, "-o", str(tmp_path / "out")) == 2
    assert calls == ["plan"]
    assert "fake cannot hold this model: groups of 24" in capsys.readouterr().err


def test_existing_output_is_refused_before_the_plan(model, calls, tmp_path, capsys):
    assert export(model, "-o", str(model)) == 2
    assert calls == [] and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("is_verifiable", [True, False])
def test_next_step_is_only_named_where_it_works(
    is_verifiable, model, monkeypatch, tmp_path, capsys
):
    install(monkeypatch, measured=0.0, is_verifiable=is_verifiable)
    assert export(model, "-o", str(tmp_path / "out")) == 0
    assert ("bcquant verify" in capsys.readouterr().out) == is_verifiable


def test_output_is_named_after_the_model(model, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export(model, "--allow-lossy") == 0
    assert (tmp_path / "tiny.fake").is_file()


def test_plan_table_says_what_changes(model, calls, tmp_path, capsys):
    export(model, "-o", str(tmp_path / "out"), "--dry-run")
    out = capsys.readouterr().out
    assert "changed, relative error up to 0.25" in out and "exact" in out and "model.fake" in out


def test_format_must_be_named_and_known(calls, capsys):
    assert main(["export"]) == 2
    assert "a format is missing (fake)" in capsys.readouterr().err
    assert main(["export", "nothing", "x"]) == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_help_lists_the_exporters(calls, capsys):
    assert main(["export", "--help"]) == 0
    assert "write nothing of use" in capsys.readouterr().out
