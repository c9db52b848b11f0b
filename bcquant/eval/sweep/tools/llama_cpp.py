"""llama.cpp's own types, with and without an importance matrix."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Speed, Tool, Wish
from bcquant.eval.sweep.speed import FOLLOWING, PROMPT, ROUNDS

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    return [
        (f"{kind}{' imatrix' if has else ''}", {"type": kind, "imatrix": has})
        for kind in TYPES
        for has in (False, True)
        if not (has and kind == "Q8_0")  # which reads none
    ]


def _make(job: MakeJob) -> Made:
    out = job.folder / "model.gguf"
    has_matrix = job.settings["imatrix"]
    task = {
        "model": str(job.inputs.gguf()), "out": str(out), "settings": job.settings,
        "importance": str(job.inputs.importance()) if has_matrix else None,
        "threads": job.threads,
    }  # fmt: skip
    found = job.run("llama_cpp", task)
    speed = partial(_speed, job, out)
    return Made(out, None, None, found["seconds"], found["peak_mb"], speed)


def _speed(job: MakeJob, model: Path) -> Speed:
    task = {
        "model": str(model), "prompt": PROMPT, "following": FOLLOWING, "rounds": ROUNDS,
        "threads": job.threads,
    }  # fmt: skip
    found = job.run("llama_speed", task)
    return Speed(found["prefill_tokens_per_s"], found["decode_tokens_per_s"])


TOOL = Tool(
    key="llama_cpp",
    distributions=("llama-cpp-python",),
    children=("llama_cpp", "llama_speed"),
    points=_points,
    make=_make,
)
