"""What each checkpoint format can hold, and which of its readers stumble, from shapes alone.

`requirements` names what nobody can read: it refuses a run before it starts. `reader_limits` names
what some readers refuse or round: it warns.
"""

from __future__ import annotations

from bcquant.errors import ExportError
from bcquant.spec.quant_format import QuantFormat

TARGETS = ("gptq", "gptq_v2", "compressed-tensors")
GPTQ_GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)  # gptqmodel 7.6 refuses others


def requirements(fmt: QuantFormat, n: int, k: int, target: str) -> list[str]:
    """Why `target` cannot hold an (N, K) weight of this format; empty when it can.

    Args:
        target: one of `TARGETS`, as the command line's --format spells them. An int8_token format
            means `int-quantized` in compressed-tensors, every other one `pack-quantized`.
    Returns:
        One clause per reason, each naming the number at fault and what would do.
    Raises:
        ExportError: unknown target.
    Source: gptqmodel 7.6 TorchLinear, compressed-tensors 0.20 (tests/quant/test_judge_*.py).
    """
    _check_target(target)
    if target == "compressed-tensors":
        return _compressed_reasons(fmt, n, k)
    return _gptq_reasons(fmt, n, k)


def reader_limits(fmt: QuantFormat, n: int, k: int, target: str) -> list[str]:
    """Which common readers cannot load, or round, an (N, K) weight that `target` can hold.

    Args:
        target: one of `TARGETS`.
    Returns:
        One clause per limit, naming the reader and the way around it; empty = none is known.
    Raises:
        ExportError: unknown target.
    Source: gptqmodel 7.6 and transformers 5.23 on CPU (tests/quant, tests/judges). vLLM:
        FORMATS.md and its published GPTQ loader, which were read and not run.
    """
    _check_target(target)
    if target == "compressed-tensors":
        if fmt.symmetric:
            return []
        return [
            "transformers 5.23 with compressed-tensors 0.20 expects unpacked zero points; load "
            "with CompressedTensorsConfig(dequantize=True)"
        ]
    limits = []
    # The kernel that gptqmodel picks by itself for 4 bits on a CPU, and the groups it knows.
    if fmt.bits == 4 and fmt.group_size in (16, 32, 64, 128):
        misfits = [f"in_features {k} % {fmt.group_size}"] if k % fmt.group_size else []
        misfits += [f"out_features {n} % 16"] if n % 16 else []
        if misfits:
            limits.append(
                f"gptqmodel's automatic CPU kernel fails on {' and '.join(misfits)}; load with "
                'backend="gptq_torch"'
            )
    if target == "gptq" and not fmt.symmetric:
        limits.append(
            "GPTQModel.load takes asymmetric v1 of its own making only; use gptq_v2 there"
        )
    if fmt.bits not in (4, 8) or not fmt.symmetric:
        limits.append("vLLM reads symmetric 4- and 8-bit GPTQ only; use compressed-tensors there")
    elif fmt.group_size != -1 and k % fmt.group_size:
        limits.append(f"vLLM needs in_features {k} to be a multiple of group_size {fmt.group_size}")
    return limits


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise ExportError(f"format {target!r} is unknown; one of {', '.join(TARGETS)} is needed")


def _gptq_reasons(fmt: QuantFormat, n: int, k: int) -> list[str]:
    reasons = []
    if fmt.activation != "none":
        reasons.append(f"GPTQ has no {fmt.activation} activations; use compressed-tensors")
    if fmt.group_size not in (*GPTQ_GROUP_SIZES, k):
        reasons.append(
            f"group_size {fmt.group_size} is refused by GPTQ readers; use one of "
            f"{', '.join(map(str, GPTQ_GROUP_SIZES))}"
        )
    if fmt.bits == 3:
        for name, size in (("out_features", n), ("in_features", k)):
            if size % 32:
                reasons.append(
                    f"{name} {size} is not a multiple of 32, which 3-bit GPTQ words need; "
                    "use 2, 4 or 8 bits, or compressed-tensors"
                )
    return reasons


def _compressed_reasons(fmt: QuantFormat, n: int, k: int) -> list[str]:
    reasons = []
    if fmt.group_size != -1 and k % fmt.group_size:
        reasons.append(
            f"in_features {k} is not a multiple of group_size {fmt.group_size}, which "
            "compressed-tensors needs; use a divisor, -1, or the gptq format"
        )
    if fmt.bits == 4 and not fmt.symmetric and n <= 8 and fmt.num_groups(k) > 1:
        reasons.append(
            f"out_features {n} is below 9, where compressed-tensors 0.20 fails to unpack 4-bit "
            "zero points; use a symmetric format"
        )
    is_w8 = (fmt.bits, fmt.group_size, fmt.symmetric) == (8, -1, True)
    if fmt.activation == "int8_token" and not is_w8:
        reasons.append(
            f"int-quantized is 8-bit, symmetric, one scale per row; got {fmt.bits}-bit, "
            f"{'symmetric' if fmt.symmetric else 'asymmetric'}, group_size {fmt.group_size}"
        )
    return reasons
