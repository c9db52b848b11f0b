"""onnxruntime-genai, which brings tokenizer, cache and sampling around ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

from bcquant.loaders import onnxruntime_cpu
from bcquant.loaders._checkpoint_rules import missing_data, not_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import GENAI_FILE, OnnxFacts
from bcquant.loaders._verdict import Export, Loader, Subject, Verdict

NAME = "onnxruntime-genai"
NEEDS = "pip install onnxruntime-genai"
# microsoft/onnxruntime-genai src/models/model_type.h at 02c6da9a (2026), the language models.
_TYPES = (
    "chatglm", "decoder", "ernie4_5", "gemma", "gemma2", "gemma3_text", "gpt2", "gptoss",
    "granite", "internlm2", "lfm2", "llama", "mistral", "nemotron", "olmo", "phi", "phimoe",
    "phi3", "phi3small", "qwen2", "qwen3", "smollm3",
)  # fmt: skip


def judge(subject: Subject) -> Verdict:
    """Our own genai folders are run in tests/exporters/onnx."""
    if not isinstance(subject, OnnxFacts):
        return not_onnx(NAME, subject)
    if subject.genai_type is None:
        return Verdict(NAME, "no", f"there is no {GENAI_FILE}; export with --target genai", "")
    if subject.genai_type not in _TYPES:
        return Verdict(NAME, "no", f"it has no model type {subject.genai_type!r}")
    if not subject.has_tokenizer:
        return Verdict(NAME, "no", "it needs tokenizer.json and tokenizer_config.json")
    return missing_data(NAME, subject) or _on_cpu(onnxruntime_cpu.LOADER.judge(subject))


def judge_export(facts: Facts) -> Verdict:
    """The graph is the one that ONNX Runtime gets."""
    return _on_cpu(onnxruntime_cpu.judge_export(facts))


def _on_cpu(verdict: Verdict) -> Verdict:
    needs = NEEDS if verdict.loads == "yes" else ""
    return replace(verdict, loader=NAME, needs=needs)


LOADER = Loader(
    NAME, "onnxruntime-genai 0.18", judge, Export("onnx", ("--target", "genai")), judge_export
)
