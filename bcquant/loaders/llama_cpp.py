"""llama.cpp and what is built on it (llama-cpp-python, Ollama, LM Studio)."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import no_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "llama.cpp"
# Its Baichuan graph is fixed to the two published depths.
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "baichuan")


def judge(subject: Subject) -> Verdict:
    """GGUF alone, of an architecture that it has."""
    if isinstance(subject, OnnxFacts):
        return no_onnx(NAME, "GGUF only")
    if subject.kind != "gguf":
        return Verdict(NAME, "no", "it reads GGUF only")
    if subject.architecture in _ARCHITECTURES:
        return Verdict(NAME, "yes", "by its rules")
    return Verdict(NAME, "unknown", f"bcquant does not know architecture {subject.architecture!r}")


def judge_export(facts: Facts) -> Verdict:
    """What our GGUF exporter writes is loaded in tests/exporters/gguf."""
    return Verdict(
        NAME, "yes", "as GGUF of types that it has", "pip install llama-cpp-python", is_tested=True
    )


LOADER = Loader(NAME, "llama-cpp-python 0.3.36", judge, Export("gguf"), judge_export)
