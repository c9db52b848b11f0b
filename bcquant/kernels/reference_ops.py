"""The decoder's other operations in plain numpy, as bcquant.kernels.reference is for linear layers.

Everything is summed in float64 and rounded to float32 once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.errors import KernelError
from bcquant.kernels.reference import F32Array, F64Array, Weight, quantize_activations


def embed(w: Weight, ids_M: npt.NDArray[np.int32]) -> F32Array:
    """Rows of a table, float32 and exact."""
    return w.values_NK()[ids_M].astype(np.float32)


def rmsnorm(x_MK: F32Array, weight_K: F32Array, eps: float) -> F32Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = x_MK.astype(np.float64)
    mean = np.square(x).mean(axis=-1, keepdims=True)
    out: F32Array = (x / np.sqrt(mean + eps) * weight_K).astype(np.float32)
    return out


def rope(x_MC: F32Array, num_heads: int, cos_MF: F32Array, sin_MF: F32Array) -> F32Array:
    """Heads of D rotated: the pair (x[i], x[i + D/2]) by the angle i, F = D / 2 angles a row."""
    x = x_MC.astype(np.float64).reshape(len(x_MC), num_heads, 2, -1)
    cos, sin = cos_MF[:, None].astype(np.float64), sin_MF[:, None].astype(np.float64)
    first, second = x[:, :, 0], x[:, :, 1]
    turned = np.stack([first * cos - second * sin, second * cos + first * sin], axis=2)
    return turned.reshape(x_MC.shape).astype(np.float32)


def silu_mul(gate: F32Array, up: F32Array) -> F32Array:
    """gate / (1 + exp(-gate)) * up."""
    g = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        out: F32Array = (g / (1 + np.exp(-g)) * up).astype(np.float32)
    return out


def softmax(x_MK: F32Array, temperature: float = 1.0) -> F32Array:
    """Softmax of x / temperature; a row of only -inf gives zeros."""
    return _softmax(x_MK.astype(np.float64) / temperature).astype(np.float32)


def _softmax(x: F64Array) -> F64Array:
    top = x.max(axis=-1, keepdims=True)
    exps = np.exp(x - np.where(np.isneginf(top), 0, top))
    total = exps.sum(axis=-1, keepdims=True)
    out: F64Array = exps / np.where(total == 0, 1, total)
    return out


def argmax(x_K: F32Array) -> int:
    """First index of the largest value; NaN counts as smaller than anything."""
    return int(np.argmax(np.where(np.isnan(x_K), -np.inf, x_K)))


def store_kv(x_TC: F32Array, kv_type: str, head_dim: int) -> F64Array:
    """Keys or values as a cache of that type holds them.

    Args:
        kv_type: "f32", "f16" or "int8" (absmax / 127 of each position and head).
    Raises:
        KernelError: another type.
    """
    if kv_type == "f32":
        return x_TC.astype(np.float64)
    if kv_type == "f16":
        with np.errstate(over="ignore"):
            return x_TC.astype(np.float16).astype(np.float64)
    if kv_type != "int8":
        raise KernelError(f"a cache of type {kv_type!r}; f32, f16 or int8 is needed")
    codes, scales = quantize_activations(x_TC, head_dim)
    return codes.astype(np.float64) * np.repeat(scales.astype(np.float64), head_dim, axis=1)


def attention(
    q_TC: F32Array,
    keys_PC: F64Array,
    values_PC: F64Array,
    num_heads: int,
    num_kv_heads: int,
    first_position: int,
    scale: float,
    window: int = 0,
    alibi_H: F32Array | None = None,
) -> F32Array:
    """Causal attention, one head and one token at a time.

    Args:
        q_TC: new tokens, shape (T, num_heads * D); token t stands at first_position + t.
        keys_PC, values_PC: what the cache holds (`store_kv`), shape (P, num_kv_heads * D).
        window: positions that a token sees, itself included; 0 = all.
        alibi_H: slopes; adds -slope * distance.
    Returns:
        shape (T, num_heads * D).
    """
    tokens, width = q_TC.shape
    head_dim, group = width // num_heads, num_heads // num_kv_heads
    out = np.zeros((tokens, width))
    for t in range(tokens):
        at = first_position + t
        seen = np.arange(max(0, at + 1 - window) if window else 0, at + 1)
        for head in range(num_heads):
            mine = slice(head * head_dim, (head + 1) * head_dim)
            theirs = slice(head // group * head_dim, (head // group + 1) * head_dim)
            scores = keys_PC[seen, theirs] @ q_TC[t, mine].astype(np.float64) * scale
            if alibi_H is not None:
                scores = scores - float(alibi_H[head]) * (at - seen)
            out[t, mine] = _softmax(scores) @ values_PC[seen, theirs]
    return out.astype(np.float32)
