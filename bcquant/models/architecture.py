"""What an architecture table is, how one is found, and the canonical names that all share.

A family is one file of this folder that exports `ARCHITECTURE`; its file name is its key. After
it, everything speaks the names of Hugging Face's LLaMA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bcquant import registry
from bcquant.errors import ConfigError
from bcquant.spec.model_config import ModelConfig

# Modules that read the same input share a stage, and with it one Hessian.
STAGES: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

# Every other file of this folder is a family table and exports ARCHITECTURE.
MACHINERY = frozenset(
    {
        "alibi", "architecture", "attention", "decoder", "gguf_config", "hf_config", "hf_fields",
        "norm", "precision", "quantized_source", "rope", "rope_scaling", "rope_tables",
        "rotated_source", "rotation", "source",
    }
)  # fmt: skip


@dataclass(frozen=True)
class SourceRef:
    """Where a canonical tensor lives in a checkpoint: a stored name and, if not whole, its rows."""

    name: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Architecture:
    """One decoder family: how its config is read and where its tensors are.

    Attributes:
        key: file name of the table.
        class_names: values of config.json's `architectures` that mean this family.
        model_types: values of config.json's `model_type`.
        parse: config.json as a mapping -> ModelConfig; ConfigError for what is not supported.
        locate: (config, canonical name) -> where it is stored, for Hugging Face checkpoints.
        gguf_arch: values of GGUF's `general.architecture`.
        gguf_permuted_qk: GGUF stores the rows of Q and K in interleaved-rotary order.
    """

    key: str
    class_names: tuple[str, ...]
    model_types: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], ModelConfig]
    locate: Callable[[ModelConfig, str], SourceRef]
    gguf_arch: tuple[str, ...] = ()
    gguf_permuted_qk: bool = False


def same_name(cfg: ModelConfig, name: str) -> SourceRef:
    """`Architecture.locate` of the families that store canonical names."""
    return SourceRef(name)


def architectures() -> list[Architecture]:
    """Every family table of this folder, sorted by key."""
    keys = [k for k in registry.names("bcquant.models") if k not in MACHINERY]
    return [registry.load("bcquant.models", k, "ARCHITECTURE") for k in keys]


def find_architecture(config: Mapping[str, Any]) -> Architecture:
    """The family of a parsed config.json, by class name, else by model type.

    Raises:
        ConfigError: neither key is there, the family is unknown (the message names the nearest
            one), or the two keys mean different families.
    """
    tables = architectures()
    by_class = {c: a for a in tables for c in a.class_names}
    by_type = {t: a for a in tables for t in a.model_types}
    classes = config.get("architectures")
    model_type = config.get("model_type")
    if classes is not None:
        if not (isinstance(classes, list) and len(classes) == 1 and isinstance(classes[0], str)):
            raise ConfigError(
                f"config.json: architectures is {classes!r}; a list of one class name is needed"
            )
        found = _lookup("architectures", classes[0], by_class)
        if (
            isinstance(model_type, str)
            and model_type in by_type
            and by_type[model_type].key != found.key
        ):
            raise ConfigError(
                f"config.json: class {classes[0]!r} and model_type {model_type!r} are different "
                "families; correct one of them"
            )
        return found
    if not isinstance(model_type, str):
        raise ConfigError(
            "config.json: neither 'architectures' nor 'model_type' says what the model is; "
            "add one of them"
        )
    return _lookup("model_type", model_type, by_type)


def find_gguf_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """The family of a GGUF file, by its `general.architecture`.

    Raises:
        ConfigError: the key is missing or names an unknown family.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ConfigError(
            "GGUF metadata: general.architecture is missing; the file names no family"
        )
    return _lookup(
        "general.architecture", name, {g: a for a in architectures() for g in a.gguf_arch}
    )


def _lookup(key: str, value: str, known: Mapping[str, Architecture]) -> Architecture:
    if value not in known:
        raise ConfigError(
            f"{key} {value!r} is not a supported decoder; {registry.nearest(value, sorted(known))}"
        )
    return known[value]


def quantizable_modules(cfg: ModelConfig, layer: int) -> list[str]:
    """Canonical names of the Linear modules of one block, in stage order.

    Returns:
        full names, e.g. "model.layers.3.self_attn.q_proj".
    """
    return [f"model.layers.{layer}.{short}" for stage in STAGES for short in stage]


def module_shape(cfg: ModelConfig, short: str) -> tuple[int, int]:
    """(N, K) of a block's Linear by its short name, e.g. "self_attn.q_proj".

    Raises:
        ConfigError: there is no such module.
    """
    hidden, inner = cfg.hidden_size, cfg.intermediate_size
    shapes = {
        "self_attn.q_proj": (cfg.q_size, hidden),
        "self_attn.k_proj": (cfg.kv_size, hidden),
        "self_attn.v_proj": (cfg.kv_size, hidden),
        "self_attn.o_proj": (hidden, cfg.q_size),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if short not in shapes:
        raise ConfigError(f"module {short!r} is unknown; {registry.nearest(short, list(shapes))}")
    return shapes[short]


def has_bias(cfg: ModelConfig, short: str) -> bool:
    """Whether a block's Linear carries a bias."""
    if short.startswith("mlp."):
        return cfg.mlp_bias
    return cfg.o_bias if short == "self_attn.o_proj" else cfg.qkv_bias


def block_tensors(cfg: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Short names and shapes of one block's tensors, in the order they are used."""
    found: list[tuple[str, tuple[int, ...]]] = [("input_layernorm.weight", (cfg.hidden_size,))]
    for stage in STAGES:
        if stage[0] == "mlp.gate_proj":
            found.append(("post_attention_layernorm.weight", (cfg.hidden_size,)))
        for short in stage:
            n, k = module_shape(cfg, short)
            found.append((f"{short}.weight", (n, k)))
            if has_bias(cfg, short):
                found.append((f"{short}.bias", (n,)))
        if stage[0] == "self_attn.q_proj" and cfg.qk_norm:
            found.append(("self_attn.q_norm.weight", (cfg.head_dim,)))
            found.append(("self_attn.k_norm.weight", (cfg.head_dim,)))
    return found


def canonical_tensors(cfg: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor of the model as (canonical name, shape), in model order.

    A tied model has no lm_head.weight: the embedding is its head.
    """
    found: list[tuple[str, tuple[int, ...]]] = [(EMBEDDING, (cfg.vocab_size, cfg.hidden_size))]
    block = block_tensors(cfg)
    for layer in range(cfg.num_layers):
        found.extend((f"model.layers.{layer}.{short}", shape) for short, shape in block)
    found.append((FINAL_NORM, (cfg.hidden_size,)))
    if not cfg.tie_embeddings:
        found.append((HEAD, (cfg.vocab_size, cfg.hidden_size)))
    return found
