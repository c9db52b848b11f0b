"""auto-round: its light recipe (50 steps of signed gradient descent a block) on a CPU."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label

LIGHT = {"iters": 50, "lr": 5e-3, "batch_size": 8}  # of `auto-round-light`


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    return [
        (
            f"light {grid_label(bits, group_size, symmetric)}",
            {"bits": bits, "group_size": group_size, "sym": symmetric, **LIGHT},
        )
        for bits, group_size, symmetric in wish.grids()
    ]


def _make(job: MakeJob) -> Made:
    out = job.folder / "model"
    out.mkdir()
    task = {
        "model": str(job.inputs.float_folder()), "out": str(out), "settings": job.settings,
        "calibration": str(job.inputs.calibration()),
    }  # fmt: skip
    found = job.run("auto_round", task)
    job.inputs.complete(out)
    stored = int(found["bits"] / 8) + job.inputs.rest_bytes()
    return Made(out, found["bits"], stored, found["seconds"], found["peak_mb"])


TOOL = Tool(
    key="auto_round",
    distributions=("auto-round", "torch", "transformers"),
    children=("auto_round",),
    points=_points,
    make=_make,
)
