"""vLLM, on an NVIDIA GPU. Its rules were read; it is not run by this project's tests."""

from __future__ import annotations

from bcquant.loaders._checkpoint_rules import no_onnx, ragged
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts
from bcquant.loaders._verdict import Loader, Subject, Verdict
from bcquant.spec.quant_format import QuantFormat

NAME = "vLLM"
# Marlin's groups: quantization/utils/marlin_utils.py, for GPTQ and for AWQ.
_MARLIN_GROUPS = (-1, 32, 64, 128)


def judge(subject: Subject) -> Verdict:
    """Sources: quantization/{auto_gptq,auto_awq}.py and compressed_tensors/ of vLLM."""
    if isinstance(subject, OnnxFacts):
        return no_onnx(NAME, "folders with safetensors")
    if subject.kind == "gguf":
        return Verdict(NAME, "unknown", "its GGUF reader is experimental; not checked")
    if subject.family is None:
        return Verdict(
            NAME, "unknown", f"bcquant does not know {subject.architecture or 'the model'}"
        )
    if subject.quant is None:
        return Verdict(NAME, "yes", "float weights, by its rules")
    if subject.quant.method == "awq":
        return _awq(subject.quant.format)
    fmt = subject.quant.format
    is_gptq = subject.quant.method == "gptq"
    formats = [fmt, *(o.format for o in subject.quant.dynamic if o.format is not None)]
    refusal = _gptq_refusal if is_gptq else _compressed_refusal
    refused = next(filter(None, (refusal(subject, one) for one in formats)), None)
    if refused:
        return Verdict(NAME, "no", refused)
    if fmt.activation == "int8_token":
        return Verdict(NAME, "yes", "int8 kernels, by its rules")
    odd = [f"{n}x{k}" for n, k in subject.linear_shapes if n % 64 or k % 128]
    if odd:
        return Verdict(
            NAME,
            "unknown",
            f"Marlin needs N % 64 = 0 and K % 128 = 0, which {', '.join(odd[:3])} are not; "
            "it depends on another kernel being there for the GPU",
        )
    return Verdict(NAME, "yes", "Marlin, by its rules")


def _awq(fmt: QuantFormat) -> Verdict:
    # auto_awq.py, get_quant_method: Marlin where it takes the type and the group (shapes are
    # padded), its own AWQ kernels otherwise.
    if fmt.group_size in _MARLIN_GROUPS and not fmt.symmetric:
        return Verdict(NAME, "yes", "Marlin, by its rules")
    what = "without zero points" if fmt.symmetric else f"with groups of {fmt.group_size}"
    return Verdict(NAME, "unknown", f"AWQ {what} takes a slower kernel than Marlin; not checked")


def _gptq_refusal(facts: Facts, fmt: QuantFormat) -> str | None:
    if fmt.bits not in (4, 8) or not fmt.symmetric:
        return (
            f"its GPTQ path takes 4 or 8 bits, symmetric, not {fmt.bits}-bit "
            f"{'symmetric' if fmt.symmetric else 'asymmetric'}; use --format compressed-tensors"
        )
    if fmt.group_size not in _MARLIN_GROUPS:
        return f"its kernels take groups of -1, 32, 64 or 128, not {fmt.group_size}"
    return ragged(facts, fmt)


def _compressed_refusal(facts: Facts, fmt: QuantFormat) -> str | None:
    if not fmt.symmetric and fmt.bits not in (4, 8):
        return f"it takes zero points at 4 and 8 bits only, not at {fmt.bits}"
    return ragged(facts, fmt)


LOADER = Loader(NAME, "vLLM 0.33", judge)
