"""Canonical quantized weights <-> the tensors of each checkpoint format, losslessly both ways.

Pure functions: `to_*` raises ExportError for what a format cannot hold, `from_*` raises
CheckpointError for tensors that contradict each other. `requirements` (limits.py) answers the first
question from shapes alone, before a run. Every layout has a page of its name in docs/formats. AWQ,
which is read and not written, is in awq.py.
"""

from __future__ import annotations

import numpy as np

from bcquant.errors import CheckpointError, ExportError, ShapeError
from bcquant.quant.limits import TARGETS, requirements
from bcquant.quant.packing import num_words, pack_bits, unpack_bits
from bcquant.quant.stored_tensors import AnyArray, Tensors, need, to_f16
from bcquant.quant.tensors import F16Array, QuantizedTensor, U8Array
from bcquant.spec.quant_format import QuantFormat

__all__ = [
    "TARGETS", "check_sequential", "from_compressed", "from_gptq", "from_int8", "requirements",
    "to_compressed", "to_gptq", "to_int8",
]  # fmt: skip


def to_gptq(q: QuantizedTensor, version: str, bias: AnyArray | None = None) -> dict[str, AnyArray]:
    """GPTQ checkpoint tensors of one Linear.

    Args:
        version: "v1" (stores zero - 1) or "v2" (stores the zero).
        bias: shape (N,), any float type; stored as float16.
    Returns:
        qweight int32 (ceil(K*bits/32), N), qzeros int32 (G, ceil(N*bits/32)), scales float16
        (G, N), g_idx int32 (K,) = k // group_size, and bias float16 (N,) if given.
    Raises:
        ExportError: `requirements` is not empty, v1 meets a zero of 0, or a bias is not finite in
            float16.
    Source: docs/formats/gptq_v1.md, gptq_v2.md. Inverse: `from_gptq`.
    """
    fmt, n, k = q.format, q.out_features, q.in_features
    _check_version(version)
    _refuse(requirements(fmt, n, k, "gptq" if version == "v1" else "gptq_v2"), "gptq", n, k)
    zeros_GN = q.zeros_NG.T
    if version == "v1":
        if not bool((zeros_GN >= 1).all()):
            raise ExportError(
                "gptq v1 stores zero - 1 and this weight has a zero of 0, which readers carry into "
                "the next column; use --format gptq_v2 or compressed-tensors"
            )
        zeros_GN = zeros_GN - np.uint8(1)
    tensors: dict[str, AnyArray] = {
        "qweight": pack_bits(q.codes_NK, fmt.bits).T.copy(),
        "qzeros": pack_bits(zeros_GN, fmt.bits),
        "scales": q.scales_NG.T.copy(),
        "g_idx": np.arange(k, dtype=np.int32) // np.int32(fmt.group_width(k)),
    }
    if bias is not None:
        tensors["bias"] = _bias_f16(bias, n)
    return tensors


def from_gptq(
    tensors: Tensors, bits: int, sym: bool, version: str, group_size: int | None = None
) -> QuantizedTensor:
    """The canonical weight of one Linear of a GPTQ checkpoint, ours or another writer's.

    Args:
        tensors: qweight, qzeros, scales, and g_idx where the file has it; a bias is left alone.
        version: "v1" (a stored 2^bits - 1 wraps to zero 0, as readers do) or "v2".
        group_size: as the checkpoint's config says; None = find it from g_idx or the shapes.
    Raises:
        CheckpointError: a tensor is missing or contradicts another, `sym` is claimed but zeros
            differ, or columns are act-ordered (g_idx not k // group_size). ConfigError: bits or
            group_size is not one that `QuantFormat` has.
    """
    _check_version(version)
    QuantFormat(bits, symmetric=sym)  # refuses a file's bits before they divide anything
    qweight, qzeros, scales = (need(tensors, s) for s in ("qweight", "qzeros", "scales"))
    for name, array in (("qweight", qweight), ("qzeros", qzeros)):
        if array.ndim != 2 or array.dtype != np.int32:
            raise CheckpointError(
                f"{name} is {array.dtype}{list(array.shape)}; an int32 matrix is needed"
            )
    if scales.ndim != 2 or not scales.size:
        raise CheckpointError(f"scales have shape {list(scales.shape)}; (G, N) is needed")
    groups, n = scales.shape
    g_idx = tensors.get("g_idx")
    k = qweight.shape[0] * 32 // bits if g_idx is None else int(g_idx.size)
    if k == 0 or qweight.shape != (num_words(k, bits), n):
        raise CheckpointError(
            f"qweight has shape {list(qweight.shape)}; {[num_words(k, bits), n]} is needed for "
            f"{bits} bits, {k} columns and {n} scales per group. Is the config's bits right?"
        )
    if qzeros.shape != (groups, num_words(n, bits)):
        raise CheckpointError(
            f"qzeros have shape {list(qzeros.shape)}; {[groups, num_words(n, bits)]} is needed"
        )
    fmt = QuantFormat(bits, _gptq_group_size(g_idx, k, groups, group_size), sym)
    zeros_GN = unpack_bits(qzeros, bits, n)
    if version == "v1":
        zeros_GN = (zeros_GN + np.uint8(1)) & np.uint8(fmt.max_code)
    codes_NK = unpack_bits(qweight.T, bits, k)
    return _canonical(codes_NK, to_f16(scales.T, "scales"), zeros_GN.T, fmt)


def to_compressed(q: QuantizedTensor) -> dict[str, AnyArray]:
    """compressed-tensors `pack-quantized` tensors of one Linear.

    Returns:
        weight_packed int32 (N, ceil(K*bits/32)), weight_scale float16 (N, G), weight_shape int64
        [N, K], and for an asymmetric format weight_zero_point int32 (ceil(N*bits/32), G).
    Raises:
        ExportError: `requirements` is not empty, or activations are quantized.
    Source: docs/formats/ct_pack_quantized.md. Inverse: `from_compressed`.
    """
    fmt, n, k = q.format, q.out_features, q.in_features
    if fmt.activation != "none":
        raise ExportError(f"pack-quantized has no {fmt.activation} activations; use `to_int8`")
    _refuse(requirements(fmt, n, k, "compressed-tensors"), "pack-quantized", n, k)
    # Stored value = signed + 2^(bits-1) and signed = code - 2^(bits-1): the code itself.
    tensors: dict[str, AnyArray] = {
        "weight_packed": pack_bits(q.codes_NK, fmt.bits),
        "weight_scale": q.scales_NG.copy(),
        "weight_shape": np.array([n, k], np.int64),
    }
    if not fmt.symmetric:
        tensors["weight_zero_point"] = pack_bits(q.zeros_NG.T, fmt.bits).T.copy()
    return tensors


def from_compressed(
    tensors: Tensors, bits: int, sym: bool, group_size: int | None = None
) -> QuantizedTensor:
    """The canonical weight of one `pack-quantized` Linear.

    Args:
        tensors: weight_packed, weight_scale, weight_shape and, if not sym, weight_zero_point.
        group_size: as the config says; None = K / columns of weight_scale.
    Raises:
        CheckpointError: a tensor is missing or contradicts another, or columns are act-ordered.
        ConfigError: bits or group_size is not one that `QuantFormat` has.
    """
    QuantFormat(bits, symmetric=sym)  # refuses a file's bits before they size anything
    packed, scales, shape = (
        need(tensors, s) for s in ("weight_packed", "weight_scale", "weight_shape")
    )
    if shape.size != 2 or not np.issubdtype(shape.dtype, np.integer):
        raise CheckpointError(f"weight_shape is {shape.dtype}{list(shape.shape)}; [N, K] is needed")
    n, k = (int(i) for i in shape.reshape(-1))
    words = num_words(k, bits)
    if min(n, k) < 1 or packed.dtype != np.int32 or packed.shape != (n, words):
        raise CheckpointError(
            f"weight_packed is {packed.dtype}{list(packed.shape)}; int32{[n, words]} is needed for "
            f"weight_shape {[n, k]} at {bits} bits"
        )
    groups = _scale_groups(scales, n, k, group_size)
    fmt = QuantFormat(bits, _group_size(k, groups, group_size), sym)
    check_sequential(tensors.get("weight_g_idx"), k, fmt.group_width(k))
    if sym:
        zeros_NG: U8Array = np.full((n, groups), fmt.symmetric_zero, np.uint8)
    else:
        zero_point = need(tensors, "weight_zero_point")
        want = (num_words(n, bits), groups)
        if zero_point.dtype != np.int32 or zero_point.shape != want:
            raise CheckpointError(
                f"weight_zero_point is {zero_point.dtype}{list(zero_point.shape)}; "
                f"int32{list(want)} is needed"
            )
        zeros_NG = unpack_bits(zero_point.T, bits, n).T.copy()
    return _canonical(unpack_bits(packed, bits, k), to_f16(scales, "weight_scale"), zeros_NG, fmt)


def to_int8(q: QuantizedTensor) -> dict[str, AnyArray]:
    """compressed-tensors `int-quantized` tensors: weight int8 (N, K), weight_scale float16 (N, 1).

    Raises:
        ExportError: the format is not 8-bit, symmetric, one scale per row.
    Source: docs/formats/ct_int_quantized.md. Inverse: `from_int8`.
    """
    fmt = QuantFormat(q.format.bits, q.format.group_size, q.format.symmetric, "int8_token")
    n, k = q.out_features, q.in_features
    _refuse(requirements(fmt, n, k, "compressed-tensors"), "int-quantized", n, k)
    return {
        "weight": (q.codes_NK ^ np.uint8(0x80)).view(np.int8),
        "weight_scale": q.scales_NG.copy(),
    }


def from_int8(tensors: Tensors, activation: str = "int8_token") -> QuantizedTensor:
    """The canonical weight of one `int-quantized` Linear: code = int8 value + 128, zero 128.

    Raises:
        CheckpointError: weight is not an int8 matrix, or weight_scale is not one per row.
    """
    weight, scales = need(tensors, "weight"), need(tensors, "weight_scale")
    if weight.ndim != 2 or weight.dtype != np.int8 or not weight.size:
        raise CheckpointError(
            f"weight is {weight.dtype}{list(weight.shape)}; an int8 matrix (N, K) is needed"
        )
    n = weight.shape[0]
    if scales.shape not in ((n, 1), (n,)):
        raise CheckpointError(
            f"weight_scale has shape {list(scales.shape)}; {[n, 1]} is needed: only per-channel "
            "int-quantized weights can be read"
        )
    fmt = QuantFormat(8, -1, True, activation)
    codes_NK = weight.view(np.uint8) ^ np.uint8(0x80)
    scales_NG = to_f16(scales.reshape(n, 1), "weight_scale")
    return _canonical(codes_NK, scales_NG, np.full((n, 1), 128, np.uint8), fmt)


def _check_version(version: str) -> None:
    if version not in ("v1", "v2"):
        raise ExportError(f"GPTQ version {version!r} is unknown; 'v1' or 'v2' is needed")


def _refuse(reasons: list[str], target: str, n: int, k: int) -> None:
    if reasons:
        raise ExportError(f"{target} cannot hold a weight {[n, k]}: {'; '.join(reasons)}")


def _bias_f16(bias: AnyArray, n: int) -> F16Array:
    if bias.shape != (n,) or not np.issubdtype(bias.dtype, np.floating):
        raise ShapeError(f"bias is {bias.dtype}{list(bias.shape)}; floats [{n}] are needed")
    limit = float(np.finfo(np.float16).max)
    if not bool((np.abs(bias) <= limit).all()):
        raise ExportError(
            f"a bias is not finite or beyond {limit:.0f}, the end of float16, which GPTQ stores; "
            "use --format compressed-tensors"
        )
    return bias.astype(np.float16)


def _group_size(k: int, groups: int, claimed: int | None) -> int:
    """The format's group size; one group is -1 unless the config says otherwise."""
    if claimed is not None:
        return claimed
    return -1 if groups == 1 else k // groups


def _gptq_group_size(g_idx: AnyArray | None, k: int, groups: int, claimed: int | None) -> int:
    if g_idx is not None and not np.issubdtype(g_idx.dtype, np.integer):
        raise CheckpointError(f"g_idx is {g_idx.dtype}; int32 is needed")
    if claimed is None and g_idx is not None and groups > 1:
        claimed = int(np.count_nonzero(g_idx.reshape(-1) == 0))
    if claimed is None and k % groups:
        raise CheckpointError(
            f"{k} columns do not divide into {groups} groups and there is no g_idx; group_size is "
            "needed in quantize_config.json"
        )
    group_size = _group_size(k, groups, claimed)
    width = k if group_size == -1 else group_size
    check_sequential(g_idx, k, width)
    if width < 1 or -(-k // width) != groups:
        raise CheckpointError(
            f"scales have {groups} groups; {k} columns in groups of {width} need "
            f"{-(-k // width) if width > 0 else 'more'}. Is the config's group_size right?"
        )
    return group_size


def check_sequential(g_idx: AnyArray | None, k: int, width: int) -> None:
    """Compare a stored g_idx, shape (K,), with k // width; None passes.

    Raises:
        CheckpointError: columns are act-ordered.
    """
    if g_idx is None:
        return
    if width < 1 or not np.array_equal(g_idx.reshape(-1), np.arange(k) // width):
        raise CheckpointError(
            "columns are act-ordered (g_idx is not k // group_size); bcquant holds groups of "
            "neighbouring columns only. Take the checkpoint's desc_act=false variant, or quantize "
            "the float model"
        )


def _scale_groups(scales: AnyArray, n: int, k: int, group_size: int | None) -> int:
    if scales.ndim != 2 or scales.shape[0] != n or not 1 <= scales.shape[1] <= k:
        raise CheckpointError(
            f"weight_scale has shape {list(scales.shape)}; [{n}, groups] is needed"
        )
    groups = int(scales.shape[1])
    width = k // groups if group_size is None else (k if group_size == -1 else group_size)
    if width < 1 or width * groups != k:
        raise CheckpointError(
            f"weight_scale has {groups} groups for {k} columns; groups of {width} do not fill "
            "them. Is the config's group_size right?"
        )
    return groups


def _canonical(
    codes_NK: U8Array, scales_NG: F16Array, zeros_NG: U8Array, fmt: QuantFormat
) -> QuantizedTensor:
    if fmt.symmetric and not bool((zeros_NG == fmt.symmetric_zero).all()):
        raise CheckpointError(
            f"the config says sym but a zero is not {fmt.symmetric_zero}; the config's "
            'checkpoint_format is wrong, or "sym" should be false'
        )
    return QuantizedTensor(codes_NK, scales_NG, np.ascontiguousarray(zeros_NG), fmt)
