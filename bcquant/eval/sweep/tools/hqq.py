"""HQQ: half-quadratic quantization without data, its defaults along the rows."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label
from bcquant.eval.sweep.tools._floats import make_floats


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    return [
        (grid_label(bits, group_size), {"bits": bits, "group_size": group_size})
        for bits in wish.bits
        for group_size in wish.group_sizes
    ]


def _make(job: MakeJob) -> Made:
    return make_floats(job, "hqq")


TOOL = Tool(
    key="hqq", distributions=("hqq", "torch"), children=("hqq",), points=_points, make=_make
)
