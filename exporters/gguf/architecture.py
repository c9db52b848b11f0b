"""Which of llama.cpp's architectures computes a model, and the keys that describe it.

llama.cpp builds a graph from the architecture's name and, in places, from the number of layers;
what that graph leaves out of a model is refused here. Read in its src/models of 2026 and tested
against llama-cpp-python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import ModelConfig

from .file import Metadata, f32, text, u32

# llama.cpp's `baichuan` graph uses ALiBi for exactly this many layers.
_ALIBI_LAYERS = 40
_ALIBI_NAME, _LLAMA_NAME = "baichuan", "llama"
_OWN_GRAPHS = ("qwen2", "qwen3")


@dataclass(frozen=True)
class Target:
    """How llama.cpp runs the model.

    Attributes:
        name: `general.architecture`.
        is_permuted: rows of Q and K are interleaved in the file, as this graph's rotary
            embedding turns neighbours.
        refusals: what of the model it would leave out, one sentence each.
    """

    name: str
    is_permuted: bool
    refusals: tuple[str, ...]


def find_target(cfg: ModelConfig) -> Target:
    """The architecture that computes this model, and what stands against it."""
    if cfg.position == "alibi":
        return Target(_ALIBI_NAME, True, tuple(_refusals(cfg, _ALIBI_NAME)))
    name = cfg.family if cfg.family in _OWN_GRAPHS else _LLAMA_NAME
    return Target(name, name == _LLAMA_NAME, tuple(_refusals(cfg, name)))


def _refusals(cfg: ModelConfig, name: str) -> list[str]:
    found = []
    if name == _ALIBI_NAME and cfg.num_layers != _ALIBI_LAYERS:
        found.append(
            f"it has ALiBi and {cfg.num_layers} layers; llama.cpp's graph of ALiBi Baichuan is "
            f"chosen by {_ALIBI_LAYERS} layers"
        )
    window = min((w for w in cfg.windows if w is not None), default=cfg.max_positions)
    if window < cfg.max_positions:
        found.append(
            f"its sliding window of {window} tokens is smaller than its context of "
            f"{cfg.max_positions}; llama.cpp's {name} graph attends to everything, so give "
            f"--context {window}"
        )
    has = {
        "biases on q, k, v": cfg.qkv_bias,
        "a bias on o": cfg.o_bias,
        "MLP biases": cfg.mlp_bias,
        "norms on q and k": cfg.qk_norm,
        "llama3 rope scaling": cfg.rope_scaling is not None and cfg.rope_scaling.kind == "llama3",
    }
    found += [
        f"it has {what}; llama.cpp's {name} graph has none"
        for what, is_there in has.items()
        if is_there and what not in _GRAPHS[name]
    ]
    return found


# What each graph can hold of the above.
_GRAPHS = {
    _LLAMA_NAME: {"biases on q, k, v", "a bias on o", "MLP biases", "llama3 rope scaling"},
    "qwen2": {"biases on q, k, v"},
    "qwen3": {"norms on q and k"},
    _ALIBI_NAME: set[str](),
}


def rope_divisors(cfg: ModelConfig) -> npt.NDArray[np.float32] | None:
    """`rope_freqs.weight` of llama3 scaling, float32, shape (head_dim / 2,); None without it."""
    if cfg.rope_scaling is None or cfg.rope_scaling.kind != "llama3":
        return None
    base = base_frequencies(cfg.rope_theta, cfg.head_dim)
    return (base / scaled_frequencies(base, cfg.rope_scaling)).astype(np.float32)


def model_metadata(cfg: ModelConfig, target: Target, model_name: str, file_type: int) -> Metadata:
    """Keys of the `general` and architecture groups.

    Args:
        file_type: llama.cpp's number for what most of the weights are stored as.
    """
    arch = target.name
    found: Metadata = {
        "general.architecture": text(arch),
        "general.type": text("model"),
        "general.name": text(model_name),
        "general.file_type": u32(file_type),
        "general.quantization_version": u32(2),
        f"{arch}.vocab_size": u32(cfg.vocab_size),
        f"{arch}.context_length": u32(cfg.max_positions),
        f"{arch}.embedding_length": u32(cfg.hidden_size),
        f"{arch}.block_count": u32(cfg.num_layers),
        f"{arch}.feed_forward_length": u32(cfg.intermediate_size),
        f"{arch}.attention.head_count": u32(cfg.num_heads),
        f"{arch}.attention.head_count_kv": u32(cfg.num_kv_heads),
        f"{arch}.attention.key_length": u32(cfg.head_dim),
        f"{arch}.attention.value_length": u32(cfg.head_dim),
        f"{arch}.attention.layer_norm_rms_epsilon": f32(cfg.rms_norm_eps),
        f"{arch}.rope.dimension_count": u32(cfg.head_dim),
        f"{arch}.rope.freq_base": f32(cfg.rope_theta),
    }
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "linear":
        found[f"{arch}.rope.scaling.type"] = text("linear")
        found[f"{arch}.rope.scaling.factor"] = f32(cfg.rope_scaling.factor)
    return found
