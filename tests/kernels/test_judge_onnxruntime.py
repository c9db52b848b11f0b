"""ONNX Runtime's MatMulNBits as an independent judge of our arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_cases import TIERS, activations, context_of, linear
from vectors.make_vectors import bound_exact, random_weight

from bcquant.kernels import reference as ref

pytestmark = pytest.mark.judge

N, K, GROUP, M = 48, 512, 64, 7


def onnxruntime_linear(w: ref.Weight, x_MK: ref.F32Array, accuracy_level: int) -> ref.F32Array:
    """y of one MatMulNBits node: codes and zeros packed low nibble first, along K and G."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tensor, helper = onnx.numpy_helper.from_array, onnx.helper
    low_high = w.codes_NK.reshape(N, K // GROUP, GROUP // 2, 2)
    packed = low_high[..., 0] | low_high[..., 1] << np.uint8(4)
    constants = [tensor(packed, "B"), tensor(w.scales_NG.astype(np.float32), "scales")]
    if w.zeros_NG is not None:
        pairs = w.zeros_NG.reshape(N, -1, 2)
        constants.append(tensor(pairs[..., 0] | pairs[..., 1] << np.uint8(4), "zeros"))
    node = helper.make_node(
        "MatMulNBits", ["x", *(c.name for c in constants)], ["y"], domain="com.microsoft",
        K=K, N=N, bits=4, block_size=GROUP, accuracy_level=accuracy_level,
    )  # fmt: skip
    value: Any = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "judge", [value("x", 1, [M, K])], [value("y", 1, [M, N])], constants
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: ref.F32Array = session.run(None, {"x": x_MK})[0]
    return found


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tier", TIERS)
def test_exact_equals_accuracy_level_0(tier: str, symmetric: bool) -> None:
    w, x = random_weight(N, K, 4, GROUP, symmetric, 1), activations(M, K)
    found = linear(context_of(tier), w, x).astype(np.float64)
    # Both are float32 sums of the same K products, each within the bound of the exact result.
    assert (np.abs(found - onnxruntime_linear(w, x, 0)) <= 2 * bound_exact(x, w)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("tier", TIERS)
def test_int8_equals_accuracy_level_4(tier: str, symmetric: bool) -> None:
    w, x = random_weight(N, K, 4, GROUP, symmetric, 2), activations(M, K)
    judged, wanted = onnxruntime_linear(w, x, 4).astype(np.float64), ref.linear_exact(x, w)
    found = linear(context_of(tier), w, x, "int8").astype(np.float64)
    rounding = np.linalg.norm(judged - wanted)
    assert rounding > 1e-3 * np.linalg.norm(wanted)  # the judge did round its inputs to int8
    # All codes are the same: one that is off by 1 would be 6 % of `rounding`. What is left are
    # float32 sums, 2e-5 of it (1.32.0).
    assert np.linalg.norm(found - judged) < 1e-3 * rounding
