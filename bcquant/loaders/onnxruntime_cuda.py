"""ONNX Runtime on an NVIDIA GPU. Its rules were read; it is not run by this project's tests."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import judge_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import MS, OnnxGraph, planned_graph
from bcquant.loaders._onnx_rules import bits_of, on_the_cpu
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "ONNX Runtime CUDA"
NEEDS = "pip install onnxruntime-gpu"
# microsoft/onnxruntime docs/OperatorKernels.md, CUDAExecutionProvider, at 001d12d2 (2026).
_KERNELS = {
    "MatMul", "Gemm", "RMSNormalization", "RotaryEmbedding", "SimplifiedLayerNormalization",
    MS + "GatherBlockQuantized", MS + "MatMulNBits", MS + "MultiHeadAttention",
    MS + "RotaryEmbedding", MS + "SkipSimplifiedLayerNormalization",
}  # fmt: skip
# There: float16 and bfloat16 only.
_HALF_KERNELS = {MS + "GroupQueryAttention"}
# contrib_ops/cuda/quantization: 4 bits, 8 since 1.22 (pull request 24509), any block size.
_BITS = (4, 8)


def judge(subject: Subject) -> Verdict:
    """By the table of kernels."""
    return judge_onnx(NAME, subject, _judge_graph)


def judge_export(facts: Facts) -> Verdict:
    """The graph that the exporter would write with --float16."""
    return _judge_graph(planned_graph(facts, float16=True))


def _judge_graph(graph: OnnxGraph) -> Verdict:
    if graph.has_attention_bias:
        # contrib_ops/cuda/bert/group_query_attention.cc refuses it when it runs.
        return Verdict(NAME, "no", "its GroupQueryAttention takes no attention bias (ALiBi)")
    if any(bits not in _BITS for bits in bits_of(graph)):
        # Pull request 32693, merged 2026-09-18; in which release is not known here.
        return Verdict(NAME, "unknown", "2-bit MatMulNBits is newer than the releases checked")
    slow = on_the_cpu(graph, _KERNELS | (_HALF_KERNELS if graph.is_float16 else set()))
    if slow == ["GroupQueryAttention"]:
        return Verdict(
            NAME,
            "yes",
            "by its rules, but attention runs on the CPU: its kernel takes float16 only; export "
            "with --float16",
            NEEDS,
        )
    if slow:
        return Verdict(
            NAME, "unknown", f"no kernel for {', '.join(slow)} was found; they may run on the CPU"
        )
    return Verdict(NAME, "yes", "by its rules", NEEDS)


LOADER = Loader(
    NAME, "onnxruntime main of 2026", judge, Export("onnx", ("--float16",)), judge_export
)
