"""ONNX Runtime's QNN provider: Qualcomm's NPU (HTP) and GPU. Read, not run."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import judge_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxGraph, planned_graph
from bcquant.loaders._onnx_rules import bits_of, blocks_of, has_g_idx, listed
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "ONNX Runtime QNN"
# onnxruntime-qnn pull request 288 (merged 2026-05): 2 or 4 bits in blocks of 32 or 64 on the NPU.
# microsoft/onnxruntime core/providers/qnn .../matmulnbits_op_builder.cc: 4 bits, blocks of 32,
# every zero 8, float32 on the GPU. Neither takes g_idx.
_BITS = (2, 4)
_BLOCKS = (32, 64)


def judge(subject: Subject) -> Verdict:
    """A graph of which it takes no node loads, and runs on the CPU: that is a "no" here."""
    return judge_onnx(NAME, subject, _judge_graph)


def judge_export(facts: Facts) -> Verdict:
    """The graph that the exporter would write."""
    return _judge_graph(planned_graph(facts, float16=False))


def _judge_graph(graph: OnnxGraph) -> Verdict:
    reasons = []
    if not graph.is_fixed:
        # core/providers/qnn/builder/qnn_model.cc: "Dynamic shape is not supported yet".
        reasons.append("it takes graphs with fixed shapes only, and these inputs have none")
    bits = [b for b in bits_of(graph) if b not in _BITS]
    if bits:
        reasons.append(f"its MatMulNBits takes 2 or 4 bits, not {listed(bits)}")
    blocks = [b for b in blocks_of(graph) if b not in _BLOCKS]
    if blocks:
        reasons.append(f"its MatMulNBits takes blocks of 32 or 64, not of {listed(blocks)}")
    if has_g_idx(graph):
        reasons.append("its MatMulNBits takes no g_idx")
    if reasons:
        return Verdict(NAME, "no", "; ".join(reasons))
    return Verdict(NAME, "unknown", "nothing forbids it; not checked on a device")


LOADER = Loader(
    NAME, "onnxruntime-qnn of 2026-08", judge, Export("onnx", ("--target", "mobile")), judge_export
)
