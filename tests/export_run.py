"""One export as the command line makes it, for tests of exporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcquant.models.source import open_model
from bcquant.spec.export_plan import Exporter, ExportPlan


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def run_export(exporter: Exporter, source: Path, out: Path, options: Any) -> ExportPlan:
    """Plan, validate and write `source` as `out`; the validated plan. A refusal fails the test."""
    with open_model(source) as opened:
        job = exporter.prepare(opened, options)
        assert not job.plan().refusals
        plan = job.validate(quiet)
        assert not plan.refusals
        job.write(out, quiet)
    return plan
