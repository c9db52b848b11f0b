"""LLaMA 1, 2, 3 and what shares their class: SmolLM2, TinyLlama, converted Baichuan-7B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.models import hf_fields
from bcquant.models.architecture import Architecture, same_name
from bcquant.spec.model_config import ModelConfig


def parse(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of a LlamaForCausalLM -> ModelConfig.

    Raises:
        ConfigError: a key is missing, malformed or asks for what the decoder does not have.
    """
    fields = hf_fields.decoder_fields(config, "llama", default_positions=2048)
    has_attention_bias = hf_fields.boolean(config, "attention_bias", False)
    return ModelConfig(
        **fields,
        qkv_bias=has_attention_bias,
        o_bias=has_attention_bias,
        mlp_bias=hf_fields.boolean(config, "mlp_bias", False),
    )


ARCHITECTURE = Architecture(
    key="llama",
    class_names=("LlamaForCausalLM", "LLaMAForCausalLM"),
    model_types=("llama",),
    parse=parse,
    locate=same_name,
    gguf_arch=("llama",),
    gguf_permuted_qk=True,
)
