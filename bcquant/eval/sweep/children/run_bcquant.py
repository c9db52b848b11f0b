"""bcquant's own recipe, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = ("bcquant.pipeline.quantize", "bcquant.solvers.gptq", "bcquant.eval.sweep.recipes")


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the checkpoint job["out"]; a run that was cut off goes on."""
    from bcquant.eval.sweep.recipes import recipe_of
    from bcquant.models.source import open_model
    from bcquant.pipeline.allocate import Target, allocate
    from bcquant.pipeline.quantize import quantize_model
    from bcquant.spec.recipe import CalibOptions

    def progress(what: str, done: int, total: int) -> None:
        say(done, total)

    out, settings = Path(job["out"]), job["settings"]
    recipe = recipe_of(settings, CalibOptions(**job["calib"]))
    if "target_bpw" in settings:
        with open_model(job["source"]) as source:
            target = Target(settings["target_bpw"], None)
            recipe = allocate(source, recipe, target, out, progress=progress).applied(recipe)
    quantize_model(job["source"], out, recipe, progress=progress)
    return {}
