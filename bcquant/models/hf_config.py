"""ModelConfig -> config.json that transformers, vLLM and others load.

RoPE is written in the older spelling (rope_theta, rope_scaling), which every release reads.
"""

from __future__ import annotations

from typing import Any

from bcquant.errors import ExportError
from bcquant.spec.model_config import ModelConfig

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def to_hf_config(cfg: ModelConfig, dtype: str = "float16") -> dict[str, Any]:
    """The config.json of a model that is stored under canonical names.

    Baichuan with RoPE is written as LLaMA: W_pack is split and a NormHead is folded by then.

    Args:
        dtype: type of the float tensors, "float16", "bfloat16" or "float32".
    Raises:
        ExportError: no class of transformers computes this model (ALiBi, mixed windows or biases).
    """
    family = _target_family(cfg)
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_positions,
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": _rope_scaling(cfg),
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": cfg.bos_id,
        "eos_token_id": _one_or_list(cfg.eos_ids),
        "pad_token_id": cfg.pad_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    config.update(_biases(cfg, family))
    config.update(_windows(cfg, family))
    return config


def _target_family(cfg: ModelConfig) -> str:
    if cfg.position == "alibi":
        raise ExportError(
            f"a {cfg.family} model with ALiBi cannot be written as LLaMA: no class of transformers "
            "computes it; keep its own architecture (--keep-arch)"
        )
    if cfg.family not in _CLASSES and cfg.family != "baichuan":
        raise ExportError(f"family {cfg.family!r} has no class of transformers to be written as")
    family = "llama" if cfg.family == "baichuan" else cfg.family
    # GGUF calls Mistral "llama"; the window tells them apart.
    return "mistral" if family == "llama" and any(cfg.windows) else family


def _biases(cfg: ModelConfig, family: str) -> dict[str, Any]:
    attention = (cfg.qkv_bias, cfg.o_bias)
    allowed = {
        "llama": ((False, False), (True, True)),
        "mistral": ((False, False),),
        "qwen2": ((True, False),),
        "qwen3": ((False, False), (True, True)),
    }[family]
    if attention not in allowed or (cfg.mlp_bias and family != "llama"):
        raise ExportError(
            f"a {family} config cannot say: q,k,v bias {cfg.qkv_bias}, o bias {cfg.o_bias}, "
            f"MLP bias {cfg.mlp_bias}"
        )
    if cfg.qk_norm != (family == "qwen3"):
        raise ExportError(f"a {family} config cannot say: query and key norm {cfg.qk_norm}")
    if family == "llama":
        return {"attention_bias": cfg.qkv_bias, "mlp_bias": cfg.mlp_bias}
    return {"attention_bias": cfg.qkv_bias} if family == "qwen3" else {}


def _windows(cfg: ModelConfig, family: str) -> dict[str, Any]:
    sizes = {w for w in cfg.windows if w is not None}
    if len(sizes) > 1:
        raise ExportError(f"no config can say that layers have windows of {sorted(sizes)}")
    size = sizes.pop() if sizes else None
    if family in ("qwen2", "qwen3"):
        kinds = ["full_attention" if w is None else "sliding_attention" for w in cfg.windows]
        first = next((i for i, w in enumerate(cfg.windows) if w is not None), cfg.num_layers)
        return {
            "use_sliding_window": size is not None,
            "sliding_window": size,
            "max_window_layers": first,
            "layer_types": kinds,
        }
    if family == "mistral":
        if any(w != size for w in cfg.windows):
            raise ExportError("a mistral config cannot say that only some layers have a window")
        return {"sliding_window": size}
    return {}


def _rope_scaling(cfg: ModelConfig) -> dict[str, Any] | None:
    scaling = cfg.rope_scaling
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_positions,
    }


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if not ids:
        return None
    return ids[0] if len(ids) == 1 else list(ids)
