"""W8A8 in operators of ai.onnx: what the checkpoint means, activations int8 with a scale a token.

DynamicQuantizeLinear has one scale for the whole tensor and is not used. Both sides are uint8 with
zero point 128: ONNX Runtime 1.32 multiplies int8 by int8 60 times slower (1536x1536, one row: 2.0
against 0.04 ms), and uint8 by int8 saturates on x86 without VNNI, which gives wrong sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bcquant.models.source import ModelSource
from bcquant.quant.onnx_blocks import to_matmul_integer

from .graph import ELEMENT_TYPES, Array, Graph, Weight

_SMALLEST = 1e-12  # of a token's largest magnitude, as in our decoder: no division by zero


def int8_linear(
    graph: Graph, source: ModelSource, module: str, x: str, out: str, dtype: str
) -> str:
    """x W^T of a W8A8 module.

    Args:
        x: [batch, sequence, K] of `dtype`; rounded once, however many modules read it.
        dtype: "F32" or "F16"; scales and the product of both are float32 in either case.
    """
    codes, scale = _rounded(graph, x, dtype)
    n, k = source.shape(f"{module}.weight")

    def part(index: int) -> Callable[[], Iterator[Array]]:
        def parts() -> Iterator[Array]:
            q = source.quantized(module)
            assert q is not None, module
            array = to_matmul_integer(q)[index]
            yield array.astype(np.float32) if index else array

        return parts

    weight = graph.weight(Weight(f"{module}.codes", "U8", (k, n), part(0)))
    scales = graph.weight(Weight(f"{module}.scales", "F32", (n,), part(1)))
    zero = graph.constant("int8/zero", 128, "uint8")
    sums = graph.node("MatMulInteger", (codes, weight, zero, zero), f"{out}/sums")
    floats = graph.node("Cast", (sums,), f"{out}/floats", to=ELEMENT_TYPES["F32"])
    by_token = graph.node("Mul", (floats, scale), f"{out}/by_token")
    if dtype == "F32":
        return graph.node("Mul", (by_token, scales), out)
    wide = graph.node("Mul", (by_token, scales), f"{out}/wide")
    return graph.node("Cast", (wide,), out, to=ELEMENT_TYPES[dtype])


def _rounded(graph: Graph, x: str, dtype: str) -> tuple[str, str]:
    """uint8 codes and float32 scales [batch, sequence, 1] of x; round(x / scale) + 128."""
    codes, scale = f"{x}/int8", f"{x}/int8_scale"
    if any(codes in node.outputs for node in graph.nodes):
        return codes, scale
    if dtype != "F32":
        x = graph.node("Cast", (x,), f"{x}/as_float32", to=ELEMENT_TYPES["F32"])
    magnitude = graph.node("Abs", (x,), f"{codes}/magnitude")
    axes = graph.constant("int8/axes", [-1], "int64")
    largest = graph.node("ReduceMax", (magnitude, axes), f"{codes}/largest", keepdims=1)
    smallest = graph.constant("int8/smallest", _SMALLEST, "float32")
    usable = graph.node("Max", (largest, smallest), f"{codes}/usable")
    graph.node("Div", (usable, graph.constant("int8/top", 127, "float32")), scale)
    steps = graph.node("Div", (x, scale), f"{codes}/steps")
    rounded = graph.node("Round", (steps,), f"{codes}/rounded")  # ties to even
    shift = graph.constant("int8/shift", 128, "float32")
    shifted = graph.node("Add", (rounded, shift), f"{codes}/shifted")
    return graph.node("Cast", (shifted,), codes, to=ELEMENT_TYPES["U8"]), scale
