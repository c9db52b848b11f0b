"""auto-round: its light recipe (50 steps of signed gradient descent a block) on a CPU."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label
from bcquant.eval.sweep.tools._floats import make_floats

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
    return make_floats(job, "auto_round", calibrates=True)


TOOL = Tool(
    key="auto_round",
    distributions=("auto-round", "torch", "transformers"),
    children=("auto_round",),
    points=_points,
    make=_make,
)
