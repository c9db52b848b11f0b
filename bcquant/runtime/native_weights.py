"""A checkpoint's tensors as the kernels read them: packed codes, float16 matrices, float32 rows.

Floats of any type become float16 here: a bfloat16 or float32 value is rounded (relative error at
most 2^-11; below 6e-5 in magnitude an absolute one of 3e-8), and one beyond 65504 is refused.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.errors import ConfigError
from bcquant.kernels import native
from bcquant.models.architecture import EMBEDDING, HEAD, block_tensors, quantizable_modules
from bcquant.models.source import ModelSource
from bcquant.quant.grid import quantize_nearest
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

F32Array = npt.NDArray[np.float32]

_UNIT = 32  # BCQ_UNIT_COLUMNS: group sizes are multiples of it
_HEAD_DIM_STEP, _MAX_HEAD_DIM = 16, 256  # of the attention kernels
_INFINITE = np.uint16(0x7C00)  # exponent bits of a float16 that is NaN or infinite
_CONVERT_VALUES = 16 << 20  # float32 values that exist at once


def refusal(source: ModelSource) -> str | None:
    """Why the kernels cannot run a checkpoint, None if they can; only headers are looked at."""
    cfg = source.config
    if cfg.head_dim % _HEAD_DIM_STEP or cfg.head_dim > _MAX_HEAD_DIM:
        return (
            f"head_dim is {cfg.head_dim}; the kernels need a multiple of {_HEAD_DIM_STEP}, at most "
            f"{_MAX_HEAD_DIM}"
        )
    for module in modules(source):
        fmt, k = source.format_of(module), source.shape(f"{module}.weight")[1]
        if fmt is None:
            continue
        width = fmt.group_width(k)
        if width % _UNIT and width != k:
            return (
                f"{module} has group size {width}; the kernels need a multiple of {_UNIT} or "
                "whole rows"
            )
        if is_w8a8(source) and fmt.num_groups(k) != 1:
            return (
                f"{module} has group size {width} in a W8A8 checkpoint; the kernels need whole rows"
            )
    return None


def modules(source: ModelSource) -> list[str]:
    """Canonical names of everything that becomes a packed matrix."""
    cfg = source.config
    names = [m for layer in range(cfg.num_layers) for m in quantizable_modules(cfg, layer)]
    ends = [EMBEDDING] if cfg.tie_embeddings else [EMBEDDING, HEAD]
    return names + [name.removesuffix(".weight") for name in ends]


def is_w8a8(source: ModelSource) -> bool:
    """Whether activations are meant to be int8 with one scale a token."""
    return source.quant is not None and source.quant.format.activation == "int8_token"


def pack_module(
    source: ModelSource, module: str, float_format: QuantFormat | None = None
) -> native.PackedWeight:
    """One Linear, embedding or head.

    Args:
        module: canonical name; rows of a stored W_pack are sliced out of it.
        float_format: round a matrix of floats to nearest on this grid; None keeps it as float16.
    Raises:
        CheckpointError: it cannot be read.
        ConfigError: a value is not finite or does not fit into float16.
        KernelError: there is no kernel for its format.
    """
    name = f"{module}.weight"
    folds_norm = name == HEAD and source.config.norm_head  # its rows are rescaled as floats
    q = None if folds_norm else source.quantized(module)
    if q is None and float_format is not None:
        q = _round_to_grid(source, name, float_format)
    if q is None:
        return native.pack_f16(_float16(source, name))
    return native.pack(
        np.ascontiguousarray(q.codes_NK),
        np.ascontiguousarray(q.scales_NG),
        None if q.format.symmetric else np.ascontiguousarray(q.zeros_NG),
        q.format.bits,
        q.format.group_width(q.in_features),
    )


def read_row(source: ModelSource, name: str) -> F32Array | None:
    """A norm or a bias in float32, None where the model has none of that name."""
    return np.ascontiguousarray(source.weight(name)) if source.has(name) else None


def packed_bytes(source: ModelSource, head_bits: int) -> int:
    """About how much the packed weights take, for a memory check before anything is read."""
    total = 0
    for module in modules(source):
        n, k = source.shape(f"{module}.weight")
        fmt = source.format_of(module)
        is_end = f"{module}.weight" in (EMBEDDING, HEAD)
        bits = fmt.bits if fmt is not None else head_bits if is_end else 16
        groups = 0 if bits == 16 else fmt.num_groups(k) if fmt is not None else -(-k // _UNIT)
        total += -(-n // 16) * 16 * (-(-k // _UNIT) * _UNIT * bits // 8 + 3 * groups)
    rows = [shape for _, shape in block_tensors(source.config) if len(shape) == 1]
    return total + 4 * source.config.num_layers * sum(shape[0] for shape in rows)


def _row_blocks(source: ModelSource, name: str) -> list[tuple[int, int]]:
    n, k = source.shape(name)
    step = max(1, _CONVERT_VALUES // k)
    return [(first, min(first + step, n)) for first in range(0, n, step)]


def _float16(source: ModelSource, name: str) -> npt.NDArray[np.float16]:
    """A matrix in float16, read or converted some rows at a time."""
    out = np.empty(source.shape(name), np.float16)
    is_stored = source.stored_dtype(name) == "F16"
    for first, last in _row_blocks(source, name):
        rows = (first, last)
        values = source.raw(name, rows) if is_stored else source.weight(name, rows)
        assert isinstance(values, np.ndarray)  # raw() wraps bfloat16 only
        with np.errstate(over="ignore"):
            out[first:last] = values
        exponents = out[first:last].view(np.uint16) & _INFINITE
        if bool((exponents == _INFINITE).any()):
            raise ConfigError(
                f"{source.path}: {name!r} holds {_worst(source.weight(name, rows))}, which "
                "float16 (65504 at most) does not hold; use --engine torch"
            )
    return out


def _worst(values: F32Array) -> float:
    finite = np.isfinite(values)
    return float(np.abs(values).max()) if finite.all() else float(values[~finite][0])


def _round_to_grid(source: ModelSource, name: str, fmt: QuantFormat) -> QuantizedTensor:
    """A matrix of floats rounded to nearest, some rows at a time."""
    parts = [quantize_nearest(source.weight(name, rows), fmt) for rows in _row_blocks(source, name)]
    return QuantizedTensor(
        np.concatenate([p.codes_NK for p in parts]),
        np.concatenate([p.scales_NG for p in parts]),
        np.concatenate([p.zeros_NG for p in parts]),
        fmt,
    )
