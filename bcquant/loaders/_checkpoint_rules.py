"""Rules that several programs share: what a format's readers refuse, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable

from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts, OnnxGraph
from bcquant.loaders._verdict import Subject, Verdict
from bcquant.quant.limits import reader_limits, requirements
from bcquant.spec.quant_format import QuantFormat


def target_of(facts: Facts) -> str:
    """The name of a checkpoint's format in quant/limits.py."""
    assert facts.quant is not None and facts.quant.method != "awq"
    if facts.quant.method == "gptq":
        return "gptq" if facts.quant.version == "v1" else "gptq_v2"
    return "compressed-tensors"


def first_reason(facts: Facts) -> str | None:
    """The first reason why the readers of a format refuse one of its weights, None without one."""
    for linear in facts.linears:
        reasons = requirements(linear.format, linear.n, linear.k, target_of(facts))
        if reasons:
            return reasons[0]
    return None


def limits(facts: Facts) -> list[str]:
    """What readers behind transformers stumble over in a checkpoint."""
    found = {
        limit
        for linear in facts.linears
        for limit in reader_limits(linear.format, linear.n, linear.k, target_of(facts))
        if not limit.startswith("vLLM")  # it has a verdict of its own
    }
    return sorted(found)


def ragged(facts: Facts, fmt: QuantFormat) -> str | None:
    """Why groups do not fill the rows of a weight, None where they do."""
    found = [k for _, k in facts.linear_shapes if fmt.group_size != -1 and k % fmt.group_size]
    if found:
        return f"K = {found[0]} is not a multiple of the group size {fmt.group_size}"
    return None


def not_onnx(name: str, subject: Subject) -> Verdict:
    """The verdict of a program that reads ONNX only, on anything else."""
    assert isinstance(subject, Facts)
    return Verdict(name, "no", "it reads ONNX only")


def no_onnx(name: str, reads: str) -> Verdict:
    """The verdict of a program that reads checkpoints, on an ONNX model."""
    return Verdict(name, "no", f"this is ONNX; it reads {reads}")


def judge_onnx(name: str, subject: Subject, judge_graph: Callable[[OnnxGraph], Verdict]) -> Verdict:
    """The verdict of a program that reads ONNX only, by the graph."""
    if not isinstance(subject, OnnxFacts):
        return not_onnx(name, subject)
    return missing_data(name, subject) or judge_graph(subject.graph)


def missing_data(name: str, facts: OnnxFacts) -> Verdict | None:
    """No program loads a graph without its data files."""
    if not facts.missing:
        return None
    return Verdict(name, "no", f"data files are missing: {', '.join(facts.missing[:3])}")
