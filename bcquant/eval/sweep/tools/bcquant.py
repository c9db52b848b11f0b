"""bcquant itself, in a process of its own as its peers are."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import bcquant
from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label
from bcquant.eval.sweep.speed import checkpoint_speed
from bcquant.io.digest import sha256_bytes, sha256_file
from bcquant.io.json_file import read_json_object

# A change of these may change what a recipe gives; the version of a working tree does not say so.
_CODE = ("calib", "kernels", "models", "pipeline", "quant", "solvers", "spec")


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    found: list[tuple[str, Settings]] = []
    for quality in wish.qualities:
        ending = "" if quality == "default" else f" {quality}"
        for bits, group_size, symmetric in wish.grids():
            scheme = "sym" if symmetric else "asym"
            settings = {"scheme": scheme, "bits": bits, "group_size": group_size}
            label = grid_label(bits, group_size, symmetric) + ending
            found.append((label, {**settings, "quality": quality}))
        for target, group_size, symmetric in wish.targets():
            scheme = "sym" if symmetric else "asym"
            grid = grid_label(4, group_size, symmetric).removeprefix("4-bit ")
            settings = {"scheme": scheme, "bits": 4, "group_size": group_size, "quality": quality}
            found.append((f"{target:g} bpw {grid}{ending}", {**settings, "target_bpw": target}))
        for scheme in wish.schemes:
            if scheme in ("w8a16", "w8a8"):
                settings = {"scheme": scheme, "bits": 8, "group_size": -1, "quality": quality}
                found.append((scheme + ending, settings))
    return found


def _make(job: MakeJob) -> Made:
    out = job.folder / "model"
    done = job.folder / "bcquant.done.json"
    if out.exists() and done.exists():  # judging was interrupted, not the quantization
        found = read_json_object(done)
    else:
        found = job.run("bcquant", _task(job, out))
    return Made(
        out, None, None, found["seconds"], found["peak_mb"],
        lambda: checkpoint_speed(out, job.threads),
    )  # fmt: skip


def _task(job: MakeJob, out: Path) -> Settings:
    inputs = job.inputs
    if out.exists() and not out.with_name(f"{out.name}.work").exists():
        shutil.rmtree(out)  # finished, but what it took was not written down any more
    return {
        "source": str(inputs.source.path), "out": str(out), "settings": job.settings,
        "calib": asdict(inputs.calib),
    }  # fmt: skip


def _identity() -> Settings:
    root = Path(bcquant.__file__).parent
    files = [path for part in _CODE for path in sorted((root / part).rglob("*.py"))]
    files.append(root / "eval" / "sweep" / "recipes.py")
    lines = [f"{path.relative_to(root)} {sha256_file(path)}" for path in files]
    return {"code": sha256_bytes("\n".join(lines).encode())}


TOOL = Tool(
    key="bcquant",
    distributions=("bcquant", "torch", "numpy"),
    children=("bcquant",),
    points=_points,
    make=_make,
    resumes=True,
    identity=_identity,
)
