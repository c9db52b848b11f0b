"""Qwen2 and Qwen2.5, dense: LLaMA with a bias on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.models import hf_fields
from bcquant.models.architecture import Architecture, same_name
from bcquant.spec.model_config import ModelConfig


def qwen_windows(config: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Windows of Qwen2 and Qwen3: off unless `use_sliding_window`; from `max_window_layers` on."""
    if not hf_fields.boolean(config, "use_sliding_window", False):
        return hf_fields.windows(config, num_layers, None)
    first = hf_fields.integer(config, "max_window_layers", 28)
    return hf_fields.windows(config, num_layers, hf_fields.window_size(config, 4096), first)


def parse(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of a Qwen2ForCausalLM -> ModelConfig.

    Raises:
        ConfigError: a key is missing, malformed or asks for what the decoder does not have.
    """
    fields = hf_fields.decoder_fields(config, "qwen2", default_positions=32768, default_kv_heads=32)
    return ModelConfig(**fields, qkv_bias=True, windows=qwen_windows(config, fields["num_layers"]))


ARCHITECTURE = Architecture(
    key="qwen2",
    class_names=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    parse=parse,
    locate=same_name,
    gguf_arch=("qwen2",),
)
