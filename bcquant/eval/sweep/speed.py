"""Tokens per second of a package in the runtime for apps."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from bcquant.errors import ExportError
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
    """Time a package: a prompt of PROMPT tokens, then FOLLOWING one by one."""
    from bcquant.kernels.runtime_native import RuntimeOptions, open_package

    prefill, decode = [], []
    with (
        open_package(path, checks_digests=False) as package,
        package.model(RuntimeOptions(threads)) as model,
    ):
        room = min(PROMPT + FOLLOWING, package.info.max_positions)
        prompt = room * PROMPT // (PROMPT + FOLLOWING)
        ids = np.random.default_rng(0).integers(0, package.info.vocab_size, room)
        with model.session(room) as session:
            for _ in range(1 + ROUNDS):
                session.truncate(0)
                start = time.perf_counter()
                session.append(ids[:prompt])
                middle = time.perf_counter()
                for i in range(prompt, room):
                    session.append(ids[i : i + 1])
                prefill.append(prompt / (middle - start))
                decode.append((room - prompt) / (time.perf_counter() - middle))
    return Speed(median(prefill[1:]), median(decode[1:]))
