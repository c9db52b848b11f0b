"""Mistral, dense: LLaMA with 8 key/value heads and a sliding window on every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.models import hf_fields
from bcquant.models.architecture import Architecture, same_name
from bcquant.spec.model_config import ModelConfig


def parse(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of a MistralForCausalLM -> ModelConfig.

    A missing `sliding_window` means 4096 and a null one means none, as in transformers.

    Raises:
        ConfigError: a key is missing, malformed or asks for what the decoder does not have.
    """
    fields = hf_fields.decoder_fields(
        config, "mistral", default_positions=131072, default_kv_heads=8
    )
    size = hf_fields.window_size(config, 4096)
    return ModelConfig(**fields, windows=hf_fields.windows(config, fields["num_layers"], size))


ARCHITECTURE = Architecture(
    key="mistral",
    class_names=("MistralForCausalLM",),
    model_types=("mistral",),
    parse=parse,
    locate=same_name,
)
