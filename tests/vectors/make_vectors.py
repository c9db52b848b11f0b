"""Write tests/vectors/kernels.safetensors: what every runner of the kernels must reproduce.

    .venv/bin/python tests/vectors/make_vectors.py

A case of a linear layer is `w<bits>_g<group>_<sym|asym>_n<N>_k<K>` with the tensors

    .codes .scales .zeros   the canonical weight (no scales for 16 bits, no zeros if symmetric)
    .packed                 its blob, to be equal byte by byte
    .exact .int8 .int8_token   y for `x.k<K>`; the last only where a row has one scale
    .bound_exact .bound_int8 .bound_int8_token   how far a float32 result may be off, each y

and the other operations are `<op>.<argument>` and `<op>.out`. Everything is from
bcquant.kernels.reference, seeded; a test fails when this file and the stored one differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bcquant.kernels import reference as ref
from bcquant.kernels import reference_ops as ops

PATH = Path(__file__).with_name("kernels.safetensors")
NUM_TOKENS = 3
EPSILON = 2.0**-24  # half a unit in the last place of float32

# (N, K, group_size): whole and ragged panels, units and groups.
SHAPES = ((16, 64, 64), (19, 100, 100), (33, 160, 32), (5, 200, 96))
Tensors = dict[str, np.ndarray[Any, Any]]


def random_weight(
    n: int, k: int, bits: int, group_size: int, symmetric: bool, seed: int
) -> ref.Weight:
    """Codes of the whole range, scales of both signs."""
    rng = np.random.default_rng(seed)
    if bits == 16:
        return ref.half_weight(rng.normal(0, 0.5, (n, k)).astype(np.float16))
    groups = -(-k // group_size)
    scales = rng.uniform(0.005, 0.02, (n, groups)) * rng.choice([-1, 1], (n, groups))
    zeros = rng.integers(0, 1 << bits, (n, groups), np.uint8)
    codes = rng.integers(0, 1 << bits, (n, k), np.uint8)
    return ref.Weight(
        codes, scales.astype(np.float16), None if symmetric else zeros, bits, group_size
    )


def bound_exact(x_MK: ref.F32Array, w: ref.Weight) -> ref.F64Array:
    """K products and sums in float32, in any order: each term may be off by K + G + 3 roundings."""
    k = x_MK.shape[1]
    terms = np.abs(x_MK).astype(np.float64) @ np.abs(w.values_NK()).T
    return (k + w.scales_NG.shape[1] + 3) * EPSILON * terms + 1e-37


def bound_int8(x_MK: ref.F32Array, w: ref.Weight, per_token: bool) -> ref.F64Array:
    """Integer sums are exact; what follows for each block is five roundings, and a sum of blocks.

    With zeros the sum of codes and the zero's share are float32 numbers of their own.
    """
    if w.bits == 16:
        return bound_exact(x_MK, w)
    block = ref.int8_block(w, per_token)
    codes, scales_MB = ref.quantize_activations(x_MK, block)
    total = np.zeros((len(x_MK), len(w.codes_NK)))
    zeros_NG = np.full(w.scales_NG.shape, 1 << (w.bits - 1)) if w.zeros_NG is None else w.zeros_NG
    for b in range(scales_MB.shape[1]):
        part = slice(b * block, (b + 1) * block)
        q = codes[:, part].astype(np.float64)
        group = b * block // w.group_size
        share = np.abs(q @ w.codes_NK[:, part].astype(np.float64).T)
        share += np.abs(q.sum(axis=1))[:, None] * zeros_NG[:, group]
        total += share * scales_MB[:, b : b + 1] * np.abs(w.scales_NG[:, group].astype(np.float64))
    return (scales_MB.shape[1] + 5) * EPSILON * total + 1e-37


def linear_case(w: ref.Weight, x_MK: ref.F32Array) -> Tensors:
    made: Tensors = {"codes": w.codes_NK, "packed": np.frombuffer(ref.pack_weight(w), np.uint8)}
    if w.bits != 16:
        made["scales"] = w.scales_NG
    if w.zeros_NG is not None:
        made["zeros"] = w.zeros_NG
    made["exact"], made["bound_exact"] = ref.linear_exact(x_MK, w), bound_exact(x_MK, w)
    for per_token, name in ((False, "int8"), (True, "int8_token")):
        if w.bits != 16 and (not per_token or w.scales_NG.shape[1] == 1):
            made[name] = ref.linear_int8(x_MK, w, per_token)
            made[f"bound_{name}"] = bound_int8(x_MK, w, per_token)
    return made


def linear_vectors() -> Tensors:
    found: Tensors = {}
    for index, (n, k, group_size) in enumerate(SHAPES):
        rng = np.random.default_rng(900 + k)
        x = rng.normal(0, 1, (NUM_TOKENS, k)).astype(np.float32)
        x[:, k // 3] *= 20  # an outlier column, as activations have
        found[f"x.k{k}"] = x
        for bits in (2, 3, 4, 8, 16):
            for symmetric in (True, False) if bits != 16 else (True,):
                group = group_size if bits != 16 else k
                w = random_weight(n, k, bits, group, symmetric, 100 * index + bits)
                kind = "sym" if symmetric else "asym"
                name = f"w{bits}_g{group}_{kind}_n{n}_k{k}"
                found |= {f"{name}.{part}": array for part, array in linear_case(w, x).items()}
    return found


def operation_vectors() -> Tensors:
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> ref.F32Array:
        return rng.normal(0, 1, shape).astype(np.float32)

    x, gain, gate, up = normal(3, 83), normal(83), normal(3, 83) * 4, normal(3, 83)
    heads = normal(4, 3 * 24)
    angles = rng.uniform(0, 50, (4, 12))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    scores = normal(3, 83) * 5
    scores[1, 10:40] = -np.inf
    return {
        "rmsnorm.x": x, "rmsnorm.weight": gain, "rmsnorm.out": ops.rmsnorm(x, gain, 1e-5),
        "rope.x": heads, "rope.cos": cos, "rope.sin": sin,
        "rope.out": ops.rope(heads, 3, cos, sin),
        "silu_mul.gate": gate, "silu_mul.up": up, "silu_mul.out": ops.silu_mul(gate, up),
        "softmax.x": scores, "softmax.out": ops.softmax(scores, 0.7),
    }  # fmt: skip


def attention_vectors() -> Tensors:
    """7 tokens after 13: 4 heads over 2, D = 16; whole, with a window, with ALiBi."""
    rng = np.random.default_rng(8)
    q = rng.normal(0, 1, (7, 64)).astype(np.float32)
    keys = rng.normal(0, 1, (20, 32)).astype(np.float32)
    values = rng.normal(0, 1, (20, 32)).astype(np.float32)
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    found: Tensors = {
        "attention.q": q, "attention.keys": keys, "attention.values": values,
        "attention.alibi": slopes,
    }  # fmt: skip
    for kv_type in ("f32", "f16", "int8"):
        k, v = ops.store_kv(keys, kv_type, 16), ops.store_kv(values, kv_type, 16)
        for name, window, alibi in (("whole", 0, None), ("window5", 5, None), ("alibi", 0, slopes)):
            out = ops.attention(q, k, v, 4, 2, 13, 0.25, window, alibi)
            found[f"attention.{kv_type}.{name}"] = out
    return found


def make_vectors() -> Tensors:
    """All tensors by name; bounds as float32."""
    found = linear_vectors() | operation_vectors() | attention_vectors()
    return {
        name: np.ascontiguousarray(a, np.float32 if a.dtype == np.float64 else a.dtype)
        for name, a in sorted(found.items())
    }


if __name__ == "__main__":
    save_file(make_vectors(), PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")
