"""Tiny model folders as others write them: config.json and safetensors, every family.

`make_tiny("qwen2", tmp_path)` writes one; tests of any part may import this file.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.io.dtypes import RawTensor, f32_to_bf16
from bcquant.io.writer import TensorSpec, write_sharded
from bcquant.models.architecture import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    canonical_tensors,
    find_architecture,
)
from bcquant.spec.model_config import ModelConfig

Weights = dict[str, npt.NDArray[np.float32]]

_BASE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",  # wrong on purpose for 2-byte files: readers must not believe it
}

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_BAICHUAN2 = {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}

# What each family's own checkpoints say; None takes a key away.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "rms_norm_eps": 1e-6},
    "llama3": {
        **_LLAMA, "num_key_value_heads": 2, "rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE,
    },
    "llama_bias": {**_LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "llama_linear": {**_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "smollm2": {
        **_LLAMA, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1,
        "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "num_key_value_heads": 2,
        "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "num_key_value_heads": 2,
        "head_dim": 32, "rope_theta": 1000000.0, "tie_word_embeddings": True,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_key_value_heads": 2,
        "sliding_window": 7,
    },
    "baichuan": {
        "architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan", "rms_norm_eps": 1e-6,
    },
    "baichuan13b": {
        **_BAICHUAN2, "num_attention_heads": 6, "hidden_size": 48, "model_max_length": 256,
        "max_position_embeddings": None, "norm_head": False,
    },
    "baichuan2": {**_BAICHUAN2, "norm_head": True},
    "baichuan2_13b": {
        **_BAICHUAN2, "num_attention_heads": 6, "hidden_size": 48, "model_max_length": 256,
        "max_position_embeddings": None, "norm_head": True,
    },
}  # fmt: skip


def tiny_config(family: str, **over: Any) -> dict[str, Any]:
    """config.json of a tiny model; `over` replaces keys, None takes one away."""
    config = {**_BASE, **FAMILIES[family], **over}
    return {key: value for key, value in config.items() if value is not None}


def tiny_weights(cfg: ModelConfig, seed: int = 0) -> Weights:
    """Random canonical tensors, large enough that an error in any of them moves the logits."""
    return {name: _random(name, shape, seed) for name, shape in canonical_tensors(cfg)}


def stored_weights(cfg: ModelConfig, weights: Weights) -> Weights:
    """The same under the names of the family's own checkpoints: q, k, v of Baichuan as W_pack."""
    if cfg.family != "baichuan":
        return dict(weights)
    stored: Weights = {}
    for name, values in weights.items():
        if ".q_proj." in name:
            parts = [values, *(weights[name.replace("q_proj", p)] for p in ("k_proj", "v_proj"))]
            stored[name.replace("q_proj", "W_pack")] = np.concatenate(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            stored[name] = values
    return stored


def make_tiny(
    family: str,
    folder: str | Path,
    dtype: str = "F32",
    seed: int = 0,
    max_shard_bytes: int = 1 << 30,
    **over: Any,
) -> Path:
    """Write a model folder (config.json, safetensors) and return it.

    Args:
        family: a key of `FAMILIES`.
        dtype: "F32", "F16" or "BF16".
        max_shard_bytes: a small number gives several shards and an index.
        over: keys of config.json to replace; None takes one away.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **over)
    cfg = find_architecture(config).parse(config)
    tensors = stored_weights(cfg, tiny_weights(cfg, seed))
    specs = [TensorSpec(name, dtype, values.shape) for name, values in tensors.items()]

    def fetch(name: str) -> Any:
        values = tensors[name]
        if dtype == "BF16":
            return RawTensor("BF16", values.shape, f32_to_bf16(values))
        return values.astype({"F32": np.float32, "F16": np.float16}[dtype])

    write_sharded(path, specs, fetch, max_shard_bytes, {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def make_tiny_gguf(family: str, path: str | Path, seed: int = 0, **over: Any) -> Path:
    """Write the float32 GGUF of the same tiny model as `make_tiny(family, ..., seed=seed)`.

    As llama.cpp's converter does it: Q and K of llama-like families have their rows interleaved,
    and llama3 scaling becomes `rope_freqs.weight`.
    """
    from gguf import GGUFWriter

    cfg = find_architecture(config := tiny_config(family, **over)).parse(config)
    arch = {"mistral": "llama", "baichuan": "llama"}.get(cfg.family, cfg.family)
    writer = GGUFWriter(path, arch)
    writer.add_vocab_size(cfg.vocab_size)
    writer.add_block_count(cfg.num_layers)
    writer.add_context_length(cfg.max_positions)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_feed_forward_length(cfg.intermediate_size)
    writer.add_head_count(cfg.num_heads)
    writer.add_head_count_kv(cfg.num_kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_dimension_count(cfg.head_dim)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if any(cfg.windows):
        writer.add_sliding_window(max(w for w in cfg.windows if w is not None))
    if cfg.rope_scaling is not None:
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(cfg))
    for name, values in tiny_weights(cfg, seed).items():
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            halves = (values.shape[0] // cfg.head_dim, 2, cfg.head_dim // 2, *values.shape[1:])
            values = values.reshape(halves).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _gguf_name(name: str) -> str:
    for ours, theirs in (
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ):
        name = name.replace(ours, theirs)
    return name


def _llama3_divisors(cfg: ModelConfig) -> npt.NDArray[np.float32]:
    scaling = cfg.rope_scaling
    assert scaling is not None and scaling.kind == "llama3"
    low, high, old = scaling.low_freq_factor, scaling.high_freq_factor, 8192
    divisors = []
    for i in range(cfg.head_dim // 2):
        wavelength = 2 * np.pi * cfg.rope_theta ** (2 * i / cfg.head_dim)
        if wavelength < old / high:
            divisors.append(1.0)
        elif wavelength > old / low:
            divisors.append(scaling.factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(divisors, np.float32)


def _random(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name == FINAL_NORM or "norm" in name:
        return 1 + np.float32(0.3) * noise
    if name.endswith(".bias"):
        return np.float32(0.3) * noise
    if name in (EMBEDDING, HEAD):
        return noise * np.float32(0.5)
    return noise * np.float32(1.5 / np.sqrt(shape[1]))
