"""bcquant itself."""

from __future__ import annotations

from bcquant import __version__
from bcquant.loaders._checkpoint_rules import no_onnx
from bcquant.loaders._onnx import OnnxFacts
from bcquant.loaders._verdict import Loader, Subject, Verdict

NAME = "bcquant"


def judge(subject: Subject) -> Verdict:
    """What opens without a complaint, it can use: opening compares every tensor's shape."""
    if isinstance(subject, OnnxFacts):
        return no_onnx(NAME, "checkpoints; `bcquant verify` compares an export with its source")
    if subject.problem is not None:
        return Verdict(NAME, "no", subject.problem)
    verbs = "gptq, int8, eval, generate" if subject.quant is None else "eval, generate"
    return Verdict(NAME, "yes", verbs, is_tested=True)


LOADER = Loader(NAME, f"bcquant {__version__}", judge)
