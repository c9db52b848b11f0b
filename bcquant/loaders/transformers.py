"""Hugging Face transformers, on a CPU or GPU."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import first_reason, limits, no_onnx
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts
from bcquant.loaders._verdict import Loader, Subject, Verdict

NAME = "transformers"
_GGUF = ("llama", "qwen2", "qwen3", "mistral")
# What AWQ kernels of gptqmodel 7.6 take: nn_modules/qlinear/torch_awq.py, SUPPORTS_GROUP_SIZE.
_AWQ_GROUPS = (-1, 16, 32, 64, 128)
# torch's _weight_int4pack_mm_cpu, which TorchAtenAwqLinear calls; it wants N % 16 = 0 as well.
_AWQ_CPU_GROUPS = (32, 64, 128, 256)
# quantizers/quantizer_*.py and quantizer_awq.py, validate_environment.
_PACKAGES = {
    "gptq": ("optimum and gptqmodel", "pip install accelerate optimum gptqmodel"),
    "awq": ("gptqmodel", "pip install accelerate gptqmodel"),
    "compressed-tensors": ("compressed-tensors", "pip install accelerate compressed-tensors"),
}


def judge(subject: Subject) -> Verdict:
    """Folders of every format are loaded in tests/judges."""
    if isinstance(subject, OnnxFacts):
        return no_onnx(NAME, "folders with safetensors, and GGUF")
    if subject.kind == "gguf":
        return _gguf(subject)
    refused = _refusal(subject)
    if refused:
        return Verdict(NAME, "no", refused)
    if subject.quant is None:
        return Verdict(NAME, "yes", "float weights need nothing else", is_tested=True)
    words, needs = _PACKAGES[subject.quant.method]
    known = _awq_limits(subject) if subject.quant.method == "awq" else limits(subject)
    reason = "; ".join([f"with {words} installed", *known])
    return Verdict(NAME, "yes", reason, needs, is_tested=True)


def _gguf(facts: Facts) -> Verdict:
    if facts.architecture in _GGUF:
        return Verdict(NAME, "yes", "with gguf_file=; it dequantizes to float", "pip install gguf")
    return Verdict(NAME, "no", f"it converts no GGUF of architecture {facts.architecture!r}")


def _refusal(facts: Facts) -> str | None:
    """Why transformers cannot load a folder, None when it can."""
    if not facts.architecture:
        return "there is no config.json that names an architecture"
    if "baichuan" in facts.architecture.lower():
        return (
            "it has no Baichuan model of its own (that needs the author's code and "
            "trust_remote_code); bcquant gptq writes it as LLaMA unless --keep-arch is given"
        )
    if facts.quant is None:
        return None if facts.family else f"bcquant does not know {facts.architecture!r}"
    if not facts.in_main_config:
        return "only quantize_config.json says how it is quantized; it reads config.json alone"
    if facts.quant.method == "awq":
        group_size = facts.quant.format.group_size
        if group_size not in _AWQ_GROUPS:
            return f"gptqmodel's AWQ kernels take groups of -1, 16, 32, 64 or 128, not {group_size}"
        if facts.quant.lm_head:
            # quantizer_awq.py adds the output layer to what it does not convert.
            return "it leaves lm_head float in AWQ folders, and this one quantizes it"
        return None
    if facts.quant.method == "gptq" and facts.quant.dynamic:
        return "optimum reads no mixed bits or skipped modules (`dynamic`)"
    return first_reason(facts)


def _awq_limits(facts: Facts) -> list[str]:
    """What the kernel that gptqmodel picks on a CPU does; loaded both ways in tests/judges."""
    fails = any(
        linear.format.group_width(linear.k) not in _AWQ_CPU_GROUPS or linear.n % 16
        for linear in facts.linears
    )
    does = "fails on these shapes" if fails else "rounds to bfloat16"
    return [f'gptqmodel\'s automatic CPU kernel {does}; load with backend="torch_awq"']


LOADER = Loader(NAME, "transformers 5.23, optimum 2.3, gptqmodel 7.6", judge)
