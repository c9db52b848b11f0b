"""The package behind MODEL: itself, or one that is written for the measurement and then removed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bcquant.cli.progress import progress_bar
from bcquant.errors import ExportError
from bcquant.eval.sweep.exports import export_job


@contextmanager
def package_of(model: str, quiet: bool) -> Iterator[Path]:
    """The path of a package that holds `model`; a temporary one is gone afterwards.

    Args:
        model: a .bcq file, which is taken as it is, or a checkpoint folder, GGUF file or hub id.
        quiet: show no bar; that something is exported is said all the same.
    Raises:
        CheckpointError, ConfigError: it cannot be read.
        ExportError: a package cannot hold it.
    """
    if Path(model).suffix.lower() == ".bcq":
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        path = Path(folder) / "model.bcq"
        print(f"exporting {model} to a temporary package", file=sys.stderr)
        _export(model, path, quiet)
        yield path


def _export(model: str, path: Path, quiet: bool) -> None:
    from bcquant.models.source import open_model

    with open_model(model) as source, progress_bar("tensors", quiet) as bar:
        job = export_job("mobile", source, [])
        refusals = job.plan().refusals
        if not refusals:
            plan = job.validate(lambda what, done, total: bar(f"checking {what}", done, total))
            refusals = plan.refusals
        if refusals:
            raise ExportError(f"{model}: a package cannot hold it: {'; '.join(refusals)}")
        job.write(path, lambda what, done, total: bar(f"writing {what}", done, total))
    if plan.lossy:  # speed and memory are the same
        print(f"{len(plan.lossy)} tensors are rounded in the temporary package", file=sys.stderr)
