"""ONNX Runtime's WebGPU provider, in a browser (onnxruntime-web) or native."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import judge_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import MS, OnnxGraph, planned_graph
from bcquant.loaders._onnx_rules import bits_of, has_g_idx, on_the_cpu
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "ONNX Runtime WebGPU"
NEEDS = "npm install onnxruntime-web"
# microsoft/onnxruntime contrib_ops/webgpu/webgpu_contrib_kernels.cc and
# core/providers/webgpu/webgpu_execution_provider.cc at 01671d9c (2026).
_KERNELS = {
    "MatMul", "Gemm", "RMSNormalization", "RotaryEmbedding", "SimplifiedLayerNormalization",
    MS + "GatherBlockQuantized", MS + "GroupQueryAttention", MS + "MatMulNBits",
    MS + "MultiHeadAttention", MS + "RotaryEmbedding", MS + "SkipSimplifiedLayerNormalization",
}  # fmt: skip
# Messages in the binaries of onnxruntime-web 1.30.0: 2, 4 and 8 bits in the asyncify build, which
# the ort.webgpu bundles load; 2 and 4 in the jsep build, which ort.bundle and ort.all load.
_BITS = (2, 4, 8)
_EVERY_BUNDLE_BITS = (2, 4)


def judge(subject: Subject) -> Verdict:
    """By the table of kernels."""
    return judge_onnx(NAME, subject, _judge_graph)


def judge_export(facts: Facts) -> Verdict:
    """The graph that the exporter would write for a browser with a GPU."""
    return _judge_graph(planned_graph(facts, float16=False))


def _judge_graph(graph: OnnxGraph) -> Verdict:
    if has_g_idx(graph):
        # contrib_ops/webgpu/quantization/matmul_nbits.cc
        return Verdict(NAME, "no", "MatMulNBits with g_idx is refused")
    if any(bits not in _BITS for bits in bits_of(graph)):
        return Verdict(NAME, "no", "MatMulNBits takes 2, 4 or 8 bits")
    slow = on_the_cpu(graph, _KERNELS)
    if slow:
        return Verdict(
            NAME, "unknown", f"no kernel for {', '.join(slow)} was found; they may run on the CPU"
        )
    notes = ["by its rules"]
    if any(bits not in _EVERY_BUNDLE_BITS for bits in bits_of(graph)):
        notes.append("8-bit weights need the ort.webgpu bundle, the default one refuses them")
    return Verdict(NAME, "yes", "; ".join(notes), NEEDS)


# On a GPU MatMulNBits is the fast way; --target web alone writes what is fast without one.
_EXPORT = Export("onnx", ("--target", "web", "--variant", "ort"))
LOADER = Loader(NAME, "onnxruntime-web 1.30", judge, _EXPORT, judge_export)
