"""Qwen3, dense: per-head RMSNorm on queries and keys, head_dim apart from hidden_size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.models import hf_fields
from bcquant.models.architecture import Architecture, same_name
from bcquant.models.qwen2 import qwen_windows
from bcquant.spec.model_config import ModelConfig


def parse(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of a Qwen3ForCausalLM -> ModelConfig.

    Raises:
        ConfigError: a key is missing, malformed or asks for what the decoder does not have.
    """
    fields = hf_fields.decoder_fields(
        config, "qwen3", default_positions=32768, default_kv_heads=32, default_head_dim=128
    )
    has_attention_bias = hf_fields.boolean(config, "attention_bias", False)
    return ModelConfig(
        **fields,
        qkv_bias=has_attention_bias,
        o_bias=has_attention_bias,
        qk_norm=True,
        windows=qwen_windows(config, fields["num_layers"]),
    )


ARCHITECTURE = Architecture(
    key="qwen3",
    class_names=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    parse=parse,
    locate=same_name,
    gguf_arch=("qwen3",),
)
