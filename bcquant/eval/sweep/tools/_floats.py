"""Tools that give decoder matrices back as the floats that their codes stand for."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob


def make_floats(job: MakeJob, child: str, calibrates: bool = False) -> Made:
    """Run a child that writes `decoder.safetensors` and says what it would store, in bits.

    Args:
        child: file of `bcquant.eval.sweep.children`.
        calibrates: it reads the calibration tokens.
    Raises:
        BcquantError: it failed.
    """
    out = job.folder / "model"
    out.mkdir()
    task = {"model": str(job.inputs.float_folder()), "out": str(out), "settings": job.settings}
    if calibrates:
        task["calibration"] = str(job.inputs.calibration())
    found = job.run(child, task)
    job.inputs.complete(out)
    stored = int(found["bits"] / 8) + job.inputs.rest_bytes()
    return Made(out, found["bits"], stored, found["seconds"], found["peak_mb"])
