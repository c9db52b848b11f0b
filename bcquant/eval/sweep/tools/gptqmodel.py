"""gptqmodel: its defaults, and the strongest settings that its documentation names."""

from __future__ import annotations

from typing import Any

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label

# Of QuantizeConfig. The strong ones search scales that minimize |error|^2.4 (the exponent of GPTQ's
# own code) and take FOEM with GPTAQ at the values that FOEMConfig's documentation names for both.
# They differ in the order of the columns: group-aware, or by activation with groups that stay
# where they are, which every reader takes.
_STRONG: dict[str, Any] = {"mse": 2.4, "foem": {"alpha": 0.25, "beta": 0.2}}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "best gar": {"act_group_aware": True, **_STRONG},
    "best order": {
        "desc_act": True, "act_group_aware": False, "static_groups": True, **_STRONG,
    },
}  # fmt: skip


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    return [
        (
            f"{variant} {grid_label(bits, group_size, symmetric)}",
            {"bits": bits, "group_size": group_size, "sym": symmetric, **options},
        )
        for variant, options in VARIANTS.items()
        for bits, group_size, symmetric in wish.grids()
    ]


def _make(job: MakeJob) -> Made:
    out = job.folder / "model"
    task = {
        "model": str(job.inputs.float_folder()), "out": str(out), "settings": job.settings,
        "calibration": str(job.inputs.calibration()),
    }  # fmt: skip
    found = job.run("gptqmodel", task)
    return Made(out, None, None, found["seconds"], found["peak_mb"])


TOOL = Tool(
    key="gptqmodel",
    distributions=("gptqmodel", "torch", "transformers"),
    children=("gptqmodel",),
    points=_points,
    make=_make,
)
