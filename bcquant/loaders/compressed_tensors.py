"""The compressed-tensors package, which vLLM and transformers read such folders with."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import first_reason, no_onnx
from bcquant.loaders._facts import METHOD_NAMES
from bcquant.loaders._onnx import OnnxFacts
from bcquant.loaders._verdict import Loader, Subject, Verdict

NAME = "compressed-tensors"


def judge(subject: Subject) -> Verdict:
    """Rules: quant/limits.py; loaded in tests/quant/test_judge_compressed.py."""
    if isinstance(subject, OnnxFacts):
        return no_onnx(NAME, "folders with safetensors")
    quant = subject.quant
    if quant is None or quant.method != NAME:
        is_gguf = subject.kind == "gguf"
        float_name = "GGUF" if is_gguf else "a float checkpoint"
        what = METHOD_NAMES.get(quant.method, quant.method) if quant else float_name
        return Verdict(NAME, "no", f"this is {what}, not compressed-tensors")
    reason = first_reason(subject)
    if reason:
        return Verdict(NAME, "no", reason)
    return Verdict(
        NAME, "yes", f"as {quant.version}", "pip install compressed-tensors", is_tested=True
    )


LOADER = Loader(NAME, "compressed-tensors 0.20", judge)
