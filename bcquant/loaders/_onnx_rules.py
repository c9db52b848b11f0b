"""Rules that ONNX Runtime's execution providers share."""

from __future__ import annotations

from collections.abc import Collection

from bcquant.loaders._onnx import MS, OnnxGraph

# ONNX Runtime gives a node to the CPU where a provider has no kernel for it: the model loads, and
# tensors travel. These are the operators whose place decides the speed.
HEAVY = (
    "MatMul", "Gemm", "Attention", "RMSNormalization", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "MatMulInteger", MS + "DynamicQuantizeMatMul",
    MS + "GatherBlockQuantized", MS + "GroupQueryAttention", MS + "MatMulIntegerToFloat",
    MS + "MatMulNBits", MS + "MultiHeadAttention", MS + "RotaryEmbedding",
    MS + "SkipSimplifiedLayerNormalization",
)  # fmt: skip


def on_the_cpu(graph: OnnxGraph, kernels: Collection[str]) -> list[str]:
    """Heavy operators of a graph for which a provider has no kernel, without their domain."""
    return [op.removeprefix(MS) for op in HEAVY if graph.has(op) and op not in kernels]


def bits_of(graph: OnnxGraph) -> list[int]:
    """Widths of the MatMulNBits weights, sorted."""
    return sorted({use.bits for use in graph.nbits})


def blocks_of(graph: OnnxGraph) -> list[int]:
    """Block sizes of the MatMulNBits weights, sorted."""
    return sorted({use.block_size for use in graph.nbits})


def has_g_idx(graph: OnnxGraph) -> bool:
    """Whether a MatMulNBits node has the deprecated g_idx input."""
    return any(use.has_g_idx for use in graph.nbits)


def listed(numbers: list[int]) -> str:
    """Numbers in words."""
    return ", ".join(map(str, numbers))
