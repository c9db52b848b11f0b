"""ONNX Runtime on a CPU."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import missing_data, not_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts, OnnxGraph, planned_graph
from bcquant.loaders._onnx_rules import bits_of, blocks_of, has_g_idx, listed
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "ONNX Runtime CPU"
NEEDS = "pip install onnxruntime"
# onnxruntime 1.32, contrib_ops/cpu/quantization/matmul_nbits.cc; 2 bits are in its binary's own
# message. Blocks of 512 give zeros without a word (issue 28551).
_BITS = (2, 4, 8)
_BLOCKS = (16, 32, 64, 128, 256)


def judge(subject: Subject) -> Verdict:
    """Our own exports are run in tests/exporters/onnx."""
    if not isinstance(subject, OnnxFacts):
        return not_onnx(NAME, subject)
    verdict = missing_data(NAME, subject) or _judge_graph(subject.graph)
    if verdict.loads == "yes" and not subject.exporter:
        return Verdict(NAME, "unknown", "not written by bcquant; its other operators are not known")
    return verdict


def judge_export(facts: Facts) -> Verdict:
    """The graph that the exporter would write."""
    return _judge_graph(planned_graph(facts, float16=False))


def _judge_graph(graph: OnnxGraph) -> Verdict:
    bits = [b for b in bits_of(graph) if b not in _BITS]
    if bits:
        return Verdict(NAME, "no", f"MatMulNBits takes 2, 4 or 8 bits, not {listed(bits)}")
    blocks = [b for b in blocks_of(graph) if b not in _BLOCKS]
    if blocks:
        return Verdict(
            NAME, "no", f"MatMulNBits is right for blocks of 16 .. 256, not of {listed(blocks)}"
        )
    slow = "; g_idx keeps weights from being packed, which is slow" if has_g_idx(graph) else ""
    reason = f"it has every kernel of our graphs{slow}"
    return Verdict(NAME, "yes", reason, NEEDS, is_tested=True)


LOADER = Loader(NAME, "onnxruntime 1.32", judge, Export("onnx"), judge_export)
