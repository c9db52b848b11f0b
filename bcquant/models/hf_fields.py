"""Reading the fields of a Hugging Face config.json: typed, bounded, and nothing ignored silently.

A key whose value is null counts as absent. `torch_dtype` is never read: it may say float32 over a
file of 2-byte weights, so only the stored tensors are believed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from bcquant.errors import ConfigError
from bcquant.spec.model_config import RopeScaling

MAX_LAYERS = 4096  # a bound on what a hostile config may make us allocate; real models have < 200

# Keys that change the arithmetic in ways this decoder does not compute -> values that do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1, 1.0),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "logits_scaling": (1, 1.0),
    "clip_qkv": (),
    "no_rope_layers": ([],),
    "parallel_attn": (False,),
}


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number. ConfigError: it is missing without a default, or is something else."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json: {key} is missing; a whole number is needed")
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"config.json: {key} is {value!r}; a whole number is needed")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A finite number above zero. ConfigError: it is missing without a default, or is not one."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise ConfigError(f"config.json: {key} is missing; a number above 0 is needed")
        return default
    if not is_positive(value):
        raise ConfigError(f"config.json: {key} is {value!r}; a finite number above 0 is needed")
    return float(value)


def is_positive(value: Any) -> bool:
    """Whether a value of a file is a number above 0 that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < value < sys.float_info.max  # also false for NaN


def boolean(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """true or false. ConfigError: it is something else."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {key} is {value!r}; true or false is needed")
    return value


def token_ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Token ids given as one number, a list of numbers, or not at all."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if isinstance(one, bool) or not isinstance(one, int):
            raise ConfigError(f"config.json: {key} is {value!r}; token ids are needed")
    return tuple(one for one in ids if one >= 0)  # -1 is how some files spell "none"


def refuse_unsupported(config: Mapping[str, Any]) -> None:
    """ConfigError if the config asks for arithmetic that the decoder does not have."""
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act {act!r} is not supported; 'silu' is")
    for key, neutral in _NEUTRAL.items():
        value = config.get(key)
        if value is not None and value not in neutral:
            raise ConfigError(
                f"config.json: {key} is {value!r}, which this decoder does not compute; "
                "use a dense LLaMA-like model"
            )


def rope(config: Mapping[str, Any], default_theta: float) -> tuple[float, RopeScaling | None]:
    """RoPE base and scaling, from `rope_parameters` (transformers 5) or the older two keys.

    Raises:
        ConfigError: two spellings disagree, or the kind of scaling is not linear or llama3.
    """
    params = _mapping(config, "rope_parameters")
    scaling = _mapping(config, "rope_scaling") or params
    if any(isinstance(v, Mapping) for v in params.values()):
        raise ConfigError(
            "config.json: rope_parameters differs per layer type; one set for all layers is needed"
        )
    for source in (params, scaling):
        refuse_partial = source.get("partial_rotary_factor")
        if refuse_partial not in (None, 1, 1.0):
            raise ConfigError(
                f"config.json: partial_rotary_factor is {refuse_partial!r}; only 1 is supported"
            )
    thetas = {number(c, "rope_theta") for c in (params, config) if c.get("rope_theta") is not None}
    if len(thetas) > 1:
        raise ConfigError(
            f"config.json: rope_theta is {sorted(thetas)} in two places; one value is needed"
        )
    theta = thetas.pop() if thetas else default_theta
    return theta, _scaling(scaling)


def _scaling(scaling: Mapping[str, Any]) -> RopeScaling | None:
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", number(scaling, "factor"))
    if kind == "llama3":
        low, high = number(scaling, "low_freq_factor"), number(scaling, "high_freq_factor")
        if high <= low:
            raise ConfigError(
                f"config.json: high_freq_factor {high} is not above low_freq_factor {low}"
            )
        original = integer(scaling, "original_max_position_embeddings")
        if original <= 0:
            raise ConfigError(f"config.json: original_max_position_embeddings is {original}")
        return RopeScaling("llama3", number(scaling, "factor"), low, high, original)
    raise ConfigError(f"config.json: rope scaling {kind!r} is not supported; linear and llama3 are")


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"config.json: {key} is {value!r}; an object is needed")
    return value


def windows(
    config: Mapping[str, Any], num_layers: int, size: int | None, first_layer: int = 0
) -> tuple[int | None, ...]:
    """Sliding window of every layer.

    `layer_types` decides where the file has it; else layers from `first_layer` slide.

    Args:
        size: window in tokens, None = no layer slides.
    Raises:
        ConfigError: `layer_types` has the wrong length or an unknown kind, or slides without size.
    """
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple(size if i >= first_layer else None for i in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ConfigError(f"config.json: layer_types must be a list of {num_layers} entries")
    found: list[int | None] = []
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"config.json: layer type {kind!r} is not supported")
        if kind == "sliding_attention" and size is None:
            raise ConfigError("config.json: layer_types has sliding layers but no sliding_window")
        found.append(size if kind == "sliding_attention" else None)
    return tuple(found)


def window_size(config: Mapping[str, Any], default: int | None = None) -> int | None:
    """`sliding_window` in tokens; a null in the file means none even where there is a default."""
    if "sliding_window" not in config:
        return default
    if config["sliding_window"] is None:
        return None
    size = integer(config, "sliding_window")
    if size <= 0:
        raise ConfigError(f"config.json: sliding_window is {size}; a number above 0 is needed")
    return size


def decoder_fields(
    config: Mapping[str, Any],
    family: str,
    *,
    default_theta: float = 10000.0,
    default_positions: int | None = None,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments of `ModelConfig` that every family spells alike.

    The defaults are those that transformers' config class of the family fills in for a missing key.

    Raises:
        ConfigError: a key is missing, has the wrong type, or asks for what is not supported.
    """
    refuse_unsupported(config)
    heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
    has_kv_key = "num_key_value_heads" in config  # null there means as many as query heads
    kv_heads = heads if has_kv_key or default_kv_heads is None else default_kv_heads
    theta, scaling = rope(config, default_theta)
    bos, pad = token_ids(config, "bos_token_id"), token_ids(config, "pad_token_id")
    return {
        "family": family,
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": integer(config, "intermediate_size"),
        "num_layers": _layers(config),
        "num_heads": heads,
        "num_kv_heads": integer(config, "num_key_value_heads", kv_heads),
        "head_dim": integer(config, "head_dim", default_head_dim or _even_split(hidden, heads)),
        "max_positions": integer(config, "max_position_embeddings", default_positions),
        "rms_norm_eps": number(config, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_embeddings": boolean(config, "tie_word_embeddings", False),
        "bos_id": bos[0] if bos else None,
        "eos_ids": token_ids(config, "eos_token_id"),
        "pad_id": pad[0] if pad else None,
    }


def _layers(config: Mapping[str, Any]) -> int:
    num_layers = integer(config, "num_hidden_layers")
    if not 0 < num_layers <= MAX_LAYERS:
        raise ConfigError(
            f"config.json: num_hidden_layers is {num_layers}; 1 to {MAX_LAYERS} is needed"
        )
    return num_layers


def _even_split(hidden: int, heads: int) -> int | None:
    """head_dim where the config has none; None (an error if it has none) where it does not fit."""
    return hidden // heads if heads > 0 and hidden % heads == 0 else None
