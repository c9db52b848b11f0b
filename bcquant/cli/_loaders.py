"""What loads a checkpoint where, reasoned from its headers: nothing is loaded to find out.

The rules are those of docs/formats and of the readers named in `CHECKED_WITH`. A "yes" that the
project's own tests prove by loading such a file says so; one that rests on reading the other
project's rules says "by its rules".
"""

from __future__ import annotations

from dataclasses import dataclass

from bcquant.cli._checkpoint_facts import Facts
from bcquant.quant.limits import reader_limits, requirements
from bcquant.spec.quant_format import QuantFormat

CHECKED_WITH = "transformers 5.23, optimum 2.3, gptqmodel 7.6, compressed-tensors 0.20, vLLM 0.33"
_TRANSFORMERS_GGUF = ("llama", "qwen2", "qwen3", "mistral")
# llama.cpp's Baichuan graph is fixed to the two published depths.
_LLAMA_CPP_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "baichuan")
_VLLM_GPTQ_GROUPS = (-1, 32, 64, 128)


@dataclass(frozen=True)
class Verdict:
    """Whether one program loads the checkpoint: "yes", "no" or "unknown", and why."""

    loader: str
    loads: str
    reason: str


def judge(facts: Facts) -> list[Verdict]:
    """One verdict a program, in a fixed order."""
    return [
        _bcquant(facts),
        _transformers(facts),
        _compressed_tensors(facts),
        _vllm(facts),
        _llama_cpp(facts),
    ]


def _bcquant(facts: Facts) -> Verdict:
    if facts.problem is not None:
        return Verdict("bcquant", "no", facts.problem)
    verbs = "gptq, int8, eval, generate" if facts.quant is None else "eval, generate"
    return Verdict("bcquant", "yes", verbs)


def _transformers(facts: Facts) -> Verdict:
    name = "transformers"
    if facts.kind == "gguf":
        if facts.architecture in _TRANSFORMERS_GGUF:
            return Verdict(name, "yes", "with gguf_file=; it dequantizes to float")
        return Verdict(name, "no", f"it converts no GGUF of architecture {facts.architecture!r}")
    refused = _transformers_refusal(facts)
    if refused:
        return Verdict(name, "no", refused)
    if facts.quant is None:
        return Verdict(name, "yes", "float weights need nothing else")
    is_gptq = facts.quant.method == "gptq"
    needed = "optimum and gptqmodel" if is_gptq else "compressed-tensors"
    return Verdict(name, "yes", "; ".join([f"with {needed} installed", *_limits(facts)]))


def _transformers_refusal(facts: Facts) -> str | None:
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
    if facts.quant.method == "gptq":
        if facts.quant.dynamic:
            return "optimum reads no mixed bits or skipped modules (`dynamic`)"
        return _first_reason(facts, "gptq" if facts.quant.version == "v1" else "gptq_v2")
    return _first_reason(facts, "compressed-tensors")


def _compressed_tensors(facts: Facts) -> Verdict:
    name = "compressed-tensors"
    if facts.quant is None or facts.quant.method != "compressed-tensors":
        what = "GPTQ" if facts.quant else "GGUF" if facts.kind == "gguf" else "a float checkpoint"
        return Verdict(name, "no", f"this is {what}, not compressed-tensors")
    reason = _first_reason(facts, "compressed-tensors")
    if reason:
        return Verdict(name, "no", reason)
    return Verdict(name, "yes", f"as {facts.quant.version}")


def _vllm(facts: Facts) -> Verdict:
    name = "vLLM"
    if facts.kind == "gguf":
        return Verdict(name, "unknown", "its GGUF reader is experimental; not checked")
    if facts.family is None:
        return Verdict(
            name, "unknown", f"bcquant does not know {facts.architecture or 'the model'}"
        )
    if facts.quant is None:
        return Verdict(name, "yes", "float weights, by its rules")
    fmt = facts.quant.format
    refused = (
        _vllm_gptq_refusal(facts, fmt)
        if facts.quant.method == "gptq"
        else _vllm_compressed_refusal(facts, fmt)
    )
    if refused:
        return Verdict(name, "no", refused)
    if fmt.activation == "int8_token":
        return Verdict(name, "yes", "int8 kernels, by its rules")
    odd = [f"{n}x{k}" for n, k in facts.linear_shapes if n % 64 or k % 128]
    if odd:
        return Verdict(
            name,
            "unknown",
            f"Marlin needs N % 64 = 0 and K % 128 = 0, which {', '.join(odd[:3])} are not; "
            "it depends on another kernel being there for the GPU",
        )
    return Verdict(name, "yes", "Marlin, by its rules")


def _vllm_gptq_refusal(facts: Facts, fmt: QuantFormat) -> str | None:
    if fmt.bits not in (4, 8) or not fmt.symmetric:
        return (
            f"its GPTQ path takes 4 or 8 bits, symmetric, not {fmt.bits}-bit "
            f"{'symmetric' if fmt.symmetric else 'asymmetric'}; use --format compressed-tensors"
        )
    if fmt.group_size not in _VLLM_GPTQ_GROUPS:
        return f"its kernels take groups of -1, 32, 64 or 128, not {fmt.group_size}"
    return _ragged(facts, fmt)


def _vllm_compressed_refusal(facts: Facts, fmt: QuantFormat) -> str | None:
    if not fmt.symmetric and fmt.bits not in (4, 8):
        return f"it takes zero points at 4 and 8 bits only, not at {fmt.bits}"
    return _ragged(facts, fmt)


def _ragged(facts: Facts, fmt: QuantFormat) -> str | None:
    ragged = [k for _, k in facts.linear_shapes if fmt.group_size != -1 and k % fmt.group_size]
    if ragged:
        return f"K = {ragged[0]} is not a multiple of the group size {fmt.group_size}"
    return None


def _llama_cpp(facts: Facts) -> Verdict:
    name = "llama.cpp"
    if facts.kind != "gguf":
        return Verdict(name, "no", "it reads GGUF only")
    if facts.architecture in _LLAMA_CPP_ARCHITECTURES:
        return Verdict(name, "yes", "by its rules")
    return Verdict(name, "unknown", f"bcquant does not know architecture {facts.architecture!r}")


def _limits(facts: Facts) -> list[str]:
    """What readers behind transformers stumble over in this checkpoint."""
    assert facts.quant is not None
    target = "compressed-tensors"
    if facts.quant.method == "gptq":
        target = "gptq" if facts.quant.version == "v1" else "gptq_v2"
    found = {
        limit
        for n, k in facts.linear_shapes
        for limit in reader_limits(facts.quant.format, n, k, target)
        if not limit.startswith("vLLM")  # it has a verdict of its own
    }
    return sorted(found)


def _first_reason(facts: Facts, target: str) -> str | None:
    """The first reason why the readers of a format refuse one of the shapes, None without one."""
    assert facts.quant is not None
    for n, k in facts.linear_shapes:
        reasons = requirements(facts.quant.format, n, k, target)
        if reasons:
            return reasons[0]
    return None
