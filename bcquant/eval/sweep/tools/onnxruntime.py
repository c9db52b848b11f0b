"""ONNX Runtime's MatMulNBitsQuantizer: rounding, HQQ and k-quant."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label

_WIDTHS = {"hqq": (2, 4, 8), "k_quant": (4, 8)}  # what its quantizers take


def _points(wish: Wish) -> list[tuple[str, Settings]]:
    found: list[tuple[str, Settings]] = []
    for bits in wish.bits:
        for group_size in wish.group_sizes:
            if group_size < 16 or group_size & (group_size - 1) or bits not in (2, 4, 8):
                continue  # MatMulNBits has powers of two from 16, and no 3 bits
            base = {"bits": bits, "group_size": group_size}
            label = grid_label(bits, group_size)
            for scheme in ("sym", "asym"):
                if scheme in wish.schemes:
                    settings = {**base, "algorithm": "rtn", "sym": scheme == "sym"}
                    found.append((f"rtn {label} {scheme}", settings))
            for algorithm, widths in _WIDTHS.items():
                if bits in widths:
                    found.append((f"{algorithm} {label}", {**base, "algorithm": algorithm}))
    return found


def _make(job: MakeJob) -> Made:
    out = job.folder / "model"
    out.mkdir()
    task = {
        "model": str(job.inputs.float_folder()), "out": str(out), "settings": job.settings
    }  # fmt: skip
    found = job.run("onnxruntime", task)
    job.inputs.complete(out)
    stored = int(found["bits"] / 8) + job.inputs.rest_bytes()
    return Made(out, found["bits"], stored, found["seconds"], found["peak_mb"])


TOOL = Tool(
    key="onnxruntime",
    distributions=("onnxruntime", "onnx", "torch"),
    children=("onnxruntime",),
    points=_points,
    make=_make,
)
