"""bcquant.pipeline.report: the plain values and the tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bcquant.pipeline.report import candidate_seconds, report, tables
from bcquant.spec.manifest import Manifest, ManifestRow
from bcquant.spec.recipe import Recipe

LOSSES = {"rtn": 0.04, "gptq+search": 0.02, "gptq+search+refined": 0.01}
MOVED = {"rtn": 0.06, "gptq+search": 0.03, "gptq+search+retarget0.50": 0.02,
         "gptq+search+retarget0.75": 0.025, "gptq+search+retarget0.50+refined": 0.03}  # fmt: skip
SECONDS = {
    "model.layers.0.self_attn.q_proj": {"preparation": 1.0, **dict.fromkeys(LOSSES, 0.5)},
    "model.layers.0.mlp.down_proj": {"preparation": 2.25, **dict.fromkeys(MOVED, 0.25)},
}


@pytest.fixture
def manifest() -> Manifest:
    kept = ("gptq+search+refined", "gptq+search+retarget0.50")
    rows = tuple(
        ManifestRow(module, 4, 128, True, (8, 256), "", candidate, losses, 0.01, "")
        for module, candidate, losses in zip(SECONDS, kept, (LOSSES, MOVED), strict=True)
    )
    return Manifest("0", Recipe().as_dict(), {}, {}, {}, rows, {})


def shown(manifest: Manifest, **options: object) -> list[list[str]]:
    """The words of every line that is printed, borders left out."""
    out = io.StringIO()
    for table in tables(manifest, **options):  # type: ignore[arg-type]
        Console(file=out, width=200).print(table)
    return [line.replace("│", " ").split() for line in out.getvalue().splitlines()]


def test_report_holds_the_seconds_of_every_candidate(manifest: Manifest) -> None:
    modules = report(manifest, SECONDS)["modules"]
    assert [row["seconds"] for row in modules] == [2.5, 3.5]
    assert candidate_seconds({"modules": modules}) == SECONDS
    assert (modules[0]["loss_before"], modules[0]["loss_after"]) == (0.04, 0.01)


def test_table_names_each_candidate_with_its_cost(manifest: Manifest) -> None:
    lines = shown(manifest, seconds=SECONDS)
    # name, tried, kept, mean loss, seconds; strengths are not told apart.
    assert ["rtn", "2", "0", "0.05000", "0.8"] in lines
    assert ["gptq+search", "2", "0", "0.02500", "0.8"] in lines
    assert ["gptq+search+retarget", "2", "1", "0.02250", "0.5"] in lines
    assert ["gptq+search+refined", "1", "1", "0.01000", "0.5"] in lines
    assert ["gptq+search+retarget+refined", "1", "0", "0.03000", "0.2"] in lines
    assert ["preparation", "3.2"] in lines


def test_table_without_seconds_shows_none(manifest: Manifest) -> None:
    lines = shown(manifest)
    assert ["rtn", "2", "0", "0.05000"] in lines
    assert not any("preparation" in line for line in lines)


def test_module_without_recorded_seconds_reports_none(manifest: Manifest) -> None:
    row = report(manifest, {})["modules"][0]
    assert (row["seconds"], row["candidate_seconds"]) == (0, {})
