"""ONNX Runtime's MatMulNBitsQuantizer: rounding, HQQ and k-quant."""

from __future__ import annotations

from bcquant.eval.sweep.point import Made, MakeJob, Settings, Tool, Wish, grid_label
from bcquant.eval.sweep.tools._floats import make_floats

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
    return make_floats(job, "onnxruntime")


TOOL = Tool(
    key="onnxruntime",
    distributions=("onnxruntime", "onnx", "torch"),
    children=("onnxruntime",),
    points=_points,
    make=_make,
)
