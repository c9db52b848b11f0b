"""HQQ: half-quadratic quantization without data, its defaults along the rows."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    return [
        (grid_label(bits, group_size), {"bits": bits, "group_size": group_size})
        for bits in wish.bits
        for group_size in wish.group_sizes
    ]


def _make(job: MakeJob) -> Made:
    out = job.folder / "model"
    out.mkdir()
    task = {
        "model": str(job.inputs.float_folder()), "out": str(out), "settings": job.settings
    }  # fmt: skip
    found = job.run("hqq", task)
    job.inputs.complete(out)
    stored = int(found["bits"] / 8) + job.inputs.rest_bytes()
    return Made(out, found["bits"], stored, found["seconds"], found["peak_mb"])


TOOL = Tool(
    key="hqq", distributions=("hqq", "torch"), children=("hqq",), points=_points, make=_make
)
