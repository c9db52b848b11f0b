"""ONNX Runtime's weight quantizers on one MatMul after another, given back as floats."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUANTIZER = "onnxruntime.quantization.matmul_nbits_quantizer"
IMPORTS = ("numpy", "onnx", "torch", "safetensors.numpy", QUANTIZER)


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write job["out"]/decoder.safetensors in float32; returns the stored bits."""
    np = importlib.import_module("numpy")
    safetensors = importlib.import_module("safetensors.numpy")
    weights = safetensors.load_file(str(Path(job["model"]) / "decoder.safetensors"))
    found, stored_bits = {}, 0.0
    for i, name in enumerate(weights):
        weight_NK = weights[name].astype(np.float32)
        node, arrays = _quantized(weight_NK, job["settings"])
        found[name], bits = _dequantized(node, arrays)
        stored_bits += bits
        say(i + 1, len(weights))
    safetensors.save_file(found, str(Path(job["out"]) / "decoder.safetensors"), {"format": "pt"})
    return {"bits": stored_bits}


def _quantized(weight_NK: Any, settings: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The MatMulNBits node of a weight and its constant inputs: codes, scales, maybe zeros."""
    onnx = importlib.import_module("onnx")
    ort = importlib.import_module(QUANTIZER)
    n, k = weight_NK.shape
    bits, group_size = settings["bits"], settings["group_size"]
    value, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="linear")],
        "linear",
        [helper.make_tensor_value_info("x", value, ["M", k])],
        [helper.make_tensor_value_info("y", value, ["M", n])],
        [onnx.numpy_helper.from_array(weight_NK.T.copy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    algorithm: Any = None
    if settings["algorithm"] == "hqq":
        algorithm = ort.HQQWeightOnlyQuantConfig(block_size=group_size, bits=bits)
    elif settings["algorithm"] == "k_quant":
        chosen = {"linear": {"bits": bits, "group_size": group_size, "scheme": "asym"}}
        algorithm = ort.KQuantWeightOnlyQuantConfig(customized_weight_config=chosen)
    quantizer = ort.MatMulNBitsQuantizer(
        model, bits=bits, block_size=group_size, is_symmetric=settings.get("sym", False),
        algo_config=algorithm,
    )  # fmt: skip
    quantizer.process()
    done = quantizer.model.model if hasattr(quantizer.model, "model") else quantizer.model
    nodes = [node for node in done.graph.node if node.op_type == "MatMulNBits"]
    if len(nodes) != 1:
        raise SystemExit(f"ONNX Runtime left a weight of shape {n} x {k} as it was")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in done.graph.initializer}
    return nodes[0], [stored[name] for name in nodes[0].input[1:] if name]


def _dequantized(node: Any, arrays: list[Any]) -> tuple[Any, float]:
    """float32 (N, K) of a MatMulNBits, and its stored bits with scales rounded to float16."""
    np = importlib.import_module("numpy")
    facts = {a.name: a.i for a in node.attribute}
    n, k, bits, block = facts["N"], facts["K"], facts["bits"], facts["block_size"]
    groups = -(-k // block)
    codes = _unpacked(arrays[0].reshape(n, groups, -1), bits)[:, :, :block].astype(np.float32)
    scales = arrays[1].reshape(n, groups, 1).astype(np.float16).astype(np.float32)
    stored_bits = float(bits * n * k + 16 * n * groups)
    zeros: Any = float(1 << (bits - 1))
    if len(arrays) > 2 and arrays[2].dtype == np.uint8:
        zeros = _unpacked(arrays[2].reshape(n, -1), bits)[:, :groups, None].astype(np.float32)
        stored_bits += bits * n * groups
    elif len(arrays) > 2:
        zeros = arrays[2].reshape(n, groups, 1).astype(np.float16).astype(np.float32)
        stored_bits += 16 * n * groups
    weight_NK = ((codes - zeros) * scales).reshape(n, groups * block)[:, :k]
    return np.ascontiguousarray(weight_NK), stored_bits


def _unpacked(packed: Any, bits: int) -> Any:
    """Codes along the last axis, the lowest bits of a byte first."""
    np = importlib.import_module("numpy")
    parts = [packed >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)
