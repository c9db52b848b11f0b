"""Baichuan-7B, Baichuan-13B and Baichuan 2: LLaMA with q, k, v stored as one `W_pack`.

All of them share model_type "baichuan". What tells them apart (docs of the published code):

- class `BaiChuanForCausalLM` (capital C) is Baichuan-7B: RoPE, plain head;
- class `BaichuanForCausalLM` is Baichuan-13B (vocabulary 64000, plain head) or Baichuan 2
  (vocabulary 125696, NormHead). With any other vocabulary the config must say which:
  `"norm_head": true` or `false`;
- hidden_size 5120 or a missing max_position_embeddings means ALiBi, else RoPE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcquant.errors import ConfigError
from bcquant.models import hf_fields
from bcquant.models.architecture import Architecture, SourceRef
from bcquant.spec.model_config import ModelConfig

_CLASS_7B = "BaiChuanForCausalLM"
_NORM_HEAD_BY_VOCAB = {64000: False, 125696: True}


def _has_norm_head(config: Mapping[str, Any]) -> bool:
    if config.get("norm_head") is not None:
        return hf_fields.boolean(config, "norm_head", False)
    if _CLASS_7B in (config.get("architectures") or ()):
        return False
    vocab = hf_fields.integer(config, "vocab_size")
    if vocab not in _NORM_HEAD_BY_VOCAB:
        raise ConfigError(
            f"config.json: a BaichuanForCausalLM with vocab_size {vocab} is neither Baichuan-13B "
            '(64000) nor Baichuan 2 (125696); add "norm_head": true (lm_head rows are normalised, '
            "as in Baichuan 2) or false"
        )
    return _NORM_HEAD_BY_VOCAB[vocab]


def _position(config: Mapping[str, Any]) -> str:
    is_alibi = config.get("max_position_embeddings") is None or config.get("hidden_size") == 5120
    if is_alibi and _CLASS_7B in (config.get("architectures") or ()):
        raise ConfigError(
            f"config.json: class {_CLASS_7B} (RoPE) contradicts hidden_size 5120 or a missing "
            "max_position_embeddings (ALiBi); correct one of them"
        )
    return "alibi" if is_alibi else "rope"


def parse(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of any Baichuan -> ModelConfig.

    Raises:
        ConfigError: a key is missing or malformed, or it is unclear which Baichuan this is.
    """
    position = _position(config)
    max_length = config.get("model_max_length")
    fields = hf_fields.decoder_fields(config, "baichuan", default_positions=max_length or 4096)
    if fields["num_kv_heads"] != fields["num_heads"]:
        raise ConfigError(
            "config.json: no Baichuan has grouped key/value heads; W_pack cannot hold them"
        )
    return ModelConfig(**fields, position=position, norm_head=_has_norm_head(config))


def locate(cfg: ModelConfig, name: str) -> SourceRef:
    """Canonical name -> stored name; q, k and v are row ranges of W_pack, in this order."""
    first = 0
    for short, size in (("q", cfg.q_size), ("k", cfg.kv_size), ("v", cfg.kv_size)):
        part = f".self_attn.{short}_proj."
        if part in name:
            return SourceRef(name.replace(part, ".self_attn.W_pack."), (first, first + size))
        first += size
    return SourceRef(name)


ARCHITECTURE = Architecture(
    key="baichuan",
    class_names=(_CLASS_7B, "BaichuanForCausalLM"),
    model_types=("baichuan",),
    parse=parse,
    locate=locate,
    gguf_arch=("baichuan",),
    gguf_permuted_qk=True,
)
