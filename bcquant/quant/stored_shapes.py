"""Dtypes and shapes of a module's tensors in each file format, known before any data is."""

from __future__ import annotations

from bcquant.errors import ExportError
from bcquant.quant.packing import num_words
from bcquant.spec.quant_format import QuantFormat


def stored_shapes(
    fmt: QuantFormat, n: int, k: int, target: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What `repack` makes of an (N, K) weight.

    Args:
        target: "gptq", "gptq_v2" or "compressed-tensors".
    Returns:
        suffix -> (dtype in safetensors spelling, shape), in the order in which files hold them.
    Raises:
        ExportError: unknown target.
    Source: docs/formats/.
    """
    groups = fmt.num_groups(k)
    if target in ("gptq", "gptq_v2"):
        return {
            "qweight": ("I32", (num_words(k, fmt.bits), n)),
            "qzeros": ("I32", (groups, num_words(n, fmt.bits))),
            "scales": ("F16", (groups, n)),
            "g_idx": ("I32", (k,)),
        }
    if target != "compressed-tensors":
        raise ExportError(
            f"format {target!r} is unknown; gptq, gptq_v2 or compressed-tensors is needed"
        )
    if fmt.activation == "int8_token":
        return {"weight": ("I8", (n, k)), "weight_scale": ("F16", (n, 1))}
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight_packed": ("I32", (n, num_words(k, fmt.bits))),
        "weight_scale": ("F16", (n, groups)),
        "weight_shape": ("I64", (2,)),
    }
    if not fmt.symmetric:
        shapes["weight_zero_point"] = ("I32", (num_words(n, fmt.bits), groups))
    return shapes
