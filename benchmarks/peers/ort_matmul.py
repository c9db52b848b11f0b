"""ONNX Runtime's MatMulNBits: a model of one node for each copy of the weight."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VERSION = f"onnxruntime {ort.__version__}"


class OrtMatMul:
    """x @ W.T for every copy of W, whose symmetric 4-bit codes are packed as ONNX Runtime wants.

    Args:
        codes_NK: uint8, 0..15. scales_NG: float16.
        copies: nodes, each with a weight of its own. The weights differ (their rows are rotated),
            because equal ones may end up in the same memory.
        accuracy_level: 4 = int8 activations, 0 = float32.
    """

    def __init__(
        self,
        codes_NK: NDArray[np.uint8],
        scales_NG: NDArray[np.float16],
        copies: int,
        threads: int,
        accuracy_level: int,
    ) -> None:
        self.num_features = codes_NK.shape
        model = _model(codes_NK, scales_NG, copies, accuracy_level)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._copies = copies
        # What it streams: codes, and scales as float32.
        self.weight_bytes = codes_NK.size // 2 + scales_NG.size * 4

    def bind(self, x_MK: NDArray[np.float32]) -> None:
        """Use this input from now on; the outputs are allocated here."""
        n = self.num_features[0]
        self.y_MN = [np.zeros((len(x_MK), n), np.float32) for _ in range(self._copies)]
        self._binding = self._session.io_binding()
        self._x = ort.OrtValue.ortvalue_from_numpy(x_MK)
        self._binding.bind_ortvalue_input("x", self._x)
        self._y = [ort.OrtValue.ortvalue_from_numpy(y) for y in self.y_MN]
        for i, y in enumerate(self._y):
            self._binding.bind_ortvalue_output(f"y{i}", y)

    def run(self) -> None:
        """All copies, one after another, in one call of the session."""
        self._session.run_with_iobinding(self._binding)

    def result(self) -> NDArray[np.float32]:
        """The output of the first copy, (M, N)."""
        self.run()
        found: NDArray[np.float32] = self._y[0].numpy()
        return found


def _model(
    codes_NK: NDArray[np.uint8], scales_NG: NDArray[np.float16], copies: int, level: int
) -> bytes:
    n, k = codes_NK.shape
    groups = scales_NG.shape[1]
    packed = (codes_NK[:, 0::2] | codes_NK[:, 1::2] << 4).reshape(n, groups, k // groups // 2)
    scales = scales_NG.astype(np.float32).reshape(-1)
    nodes, weights, outputs = [], [], []
    for i in range(copies):
        weights.append(numpy_helper.from_array(np.roll(packed, i, axis=0), f"b{i}"))
        weights.append(numpy_helper.from_array(scales, f"s{i}"))
        node = helper.make_node(
            "MatMulNBits", ["x", f"b{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft",
            K=k, N=n, bits=4, block_size=k // groups, accuracy_level=level,
        )  # fmt: skip
        nodes.append(node)
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", n]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", k])
    graph = helper.make_graph(nodes, "linear", [x], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
