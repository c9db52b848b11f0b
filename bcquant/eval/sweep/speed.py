"""Tokens per second of a package in the runtime for apps."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bcquant.errors import ExportError
from bcquant.eval.decode_speed import measure_decode
from bcquant.eval.sweep.exports import export_job
from bcquant.eval.sweep.point import Speed
from bcquant.models.source import open_model

PROMPT, FOLLOWING, ROUNDS = 128, 32, 3  # tokens, tokens, repeats; the first round warms up


def checkpoint_speed(model: Path, threads: int) -> Speed:
    """Export a checkpoint to a temporary package and time that.

    Raises:
        ExportError: no package holds it.
    """
    with tempfile.TemporaryDirectory(prefix="bcquant-") as folder:
        path = Path(folder) / "model.bcq"
        with open_model(model) as source:
            job = export_job("mobile", source, [])
            refusals = job.validate(lambda what, done, total: None).refusals
            if refusals:
                raise ExportError(f"no package holds it: {'; '.join(refusals)}")
            job.write(path, lambda what, done, total: None)
        return package_speed(path, threads)


def package_speed(path: Path, threads: int) -> Speed:
    """Time a package: a prompt of PROMPT tokens, then FOLLOWING one by one; fewer of both where it
    has fewer positions."""
    from bcquant.kernels.runtime_native import RuntimeOptions, open_package

    with open_package(path, checks_digests=False) as package:
        room = min(PROMPT + FOLLOWING, package.info.max_positions)
    prompt = room * PROMPT // (PROMPT + FOLLOWING)
    options = RuntimeOptions(threads)
    found = measure_decode(path, prompt, room - prompt, ROUNDS, options, lambda *_: None)
    return Speed(found.prefill.median, found.decode.median)
