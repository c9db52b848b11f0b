"""GGUF metadata -> ModelConfig, GGUF tensor names, and the row order of its Q and K.

Source: docs/formats and the GGUF key list of llama.cpp; FORMATS.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, ConfigError
from bcquant.models.architecture import Architecture
from bcquant.models.hf_fields import MAX_LAYERS, is_positive
from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import ModelConfig, RopeScaling

_TRAINED_POSITIONS = (8192, *(1 << i for i in range(5, 21)))
ROPE_FACTORS = "rope_freqs.weight"  # per-frequency divisors; how GGUF carries llama3 scaling

_TOP_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(canonical: str) -> str:
    """GGUF's name of a canonical tensor: "lm_head.weight" -> "output.weight".

    Raises:
        ConfigError: the name is not a canonical one.
    """
    stem, _, suffix = canonical.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{suffix}"
    parts = stem.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["model", "layers"] and parts[3] in _BLOCK_NAMES:
        return f"blk.{parts[2]}.{_BLOCK_NAMES[parts[3]]}.{suffix}"
    raise ConfigError(f"{canonical!r} is not a canonical tensor name; GGUF has no place for it")


def permuted_rows(num_rows: int, head_dim: int) -> npt.NDArray[np.int64]:
    """For each canonical row of Q or K, the row of a GGUF `llama` file that holds it.

    GGUF interleaves the two halves of every head, because its rotary embedding turns neighbours.
    Inverse of reshape(heads, 2, head_dim/2).swapaxes(1, 2).

    Returns:
        int64, shape (num_rows,): canonical = stored[permuted_rows].
    """
    stored = np.arange(num_rows, dtype=np.int64).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(stored.swapaxes(1, 2)).reshape(num_rows)


def parse_gguf(
    arch: Architecture, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> ModelConfig:
    """GGUF key/values -> ModelConfig.

    Args:
        shapes: GGUF tensor name -> shape; they decide vocabulary size, biases and tying.
    Raises:
        ConfigError: a key is missing, malformed or asks for what the decoder does not have.
        CheckpointError: token_embd.weight is missing.
    """
    get = _Keys(metadata, str(metadata["general.architecture"]))
    if len(shapes.get("token_embd.weight", ())) != 2:
        raise CheckpointError(
            "GGUF: token_embd.weight is missing or no matrix; the file holds no whole model"
        )
    if get.integer("expert_count", 0) > 1:
        raise ConfigError(
            "GGUF metadata: mixture-of-experts models are not supported; use a dense one"
        )
    num_layers = get.integer("block_count")
    if not 0 < num_layers <= MAX_LAYERS:
        raise ConfigError(
            f"GGUF metadata: block_count is {num_layers}; 1 to {MAX_LAYERS} is needed"
        )
    heads, hidden = get.integer("attention.head_count"), get.integer("embedding_length")
    head_dim = get.integer("attention.key_length", hidden // max(heads, 1))
    _refuse_partial(get, head_dim)
    has = [f"blk.0.{n}.bias" in shapes for n in ("attn_q", "attn_output", "ffn_gate")]
    vocab = shapes["token_embd.weight"][0]
    is_alibi = arch.key == "baichuan" and num_layers == 40  # as llama.cpp decides it
    eos = get.token("eos_token_id")
    return ModelConfig(
        family=arch.key,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=get.integer("feed_forward_length"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=get.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=get.integer("context_length"),
        rms_norm_eps=get.number("attention.layer_norm_rms_epsilon"),
        position="alibi" if is_alibi else "rope",
        rope_theta=get.number("rope.freq_base", 10000.0),
        rope_scaling=_scaling(get),
        tie_embeddings="output.weight" not in shapes,
        qkv_bias=has[0],
        o_bias=has[1],
        mlp_bias=has[2],
        qk_norm="blk.0.attn_q_norm.weight" in shapes,
        norm_head=arch.key == "baichuan" and vocab == 125696,
        windows=_windows(get, num_layers),
        bos_id=get.token("bos_token_id"),
        eos_ids=() if eos is None else (eos,),
        pad_id=get.token("padding_token_id"),
    )


class _Keys:
    """Typed look-ups under the architecture's prefix; errors name the full key."""

    def __init__(self, metadata: Mapping[str, Any], prefix: str) -> None:
        self.metadata = metadata
        self.prefix = prefix

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(
                f"GGUF metadata: {self.prefix}.{key} is {value!r}; one whole number is needed"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if value is None or not is_positive(value):
            raise ConfigError(
                f"GGUF metadata: {self.prefix}.{key} is {value!r}; a number above 0 is needed"
            )
        return float(f"{value:.7g}")  # float32 on disk: 9.99999975e-06 was written as 1e-05

    def token(self, key: str) -> int | None:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def _refuse_partial(get: _Keys, head_dim: int) -> None:
    rotary = get.integer("rope.dimension_count", head_dim)
    value_dim = get.integer("attention.value_length", head_dim)
    if head_dim % 2:
        raise ConfigError(f"GGUF metadata: head size {head_dim} is odd; halves cannot be paired")
    if rotary != head_dim or value_dim != head_dim:
        raise ConfigError(
            f"GGUF metadata: rotary size {rotary} and value size {value_dim} must both be the key "
            f"size {head_dim}"
        )


def _scaling(get: _Keys) -> RopeScaling | None:
    kind = get.metadata.get(f"{get.prefix}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling("linear", get.number("rope.scaling.factor"))
    raise ConfigError(
        f"GGUF metadata: rope scaling {kind!r} is not supported; linear and llama3 are"
    )


def _windows(get: _Keys, num_layers: int) -> tuple[int | None, ...]:
    size = get.integer("attention.sliding_window", 0)
    return (size if size > 0 else None,) * num_layers


def llama3_scaling(factors: npt.NDArray[np.float32], theta: float, head_dim: int) -> RopeScaling:
    """The llama3 scaling that a GGUF `rope_freqs.weight` was made from.

    The file keeps one divisor per frequency and not the four numbers behind them. All such models
    use low 1 and high 4; the factor is the largest divisor, and the trained positions are the power
    of two that gives every divisor (8192 in Llama 3.1 and later, which is tried first).

    Args:
        factors: float32, shape (head_dim / 2,).
    Raises:
        ConfigError: the divisors are not those of a llama3 scaling.
    """
    if factors.shape != (head_dim // 2,) or not bool(((factors >= 1) & (factors < np.inf)).all()):
        raise ConfigError(f"GGUF {ROPE_FACTORS}: {head_dim // 2} numbers of at least 1 are needed")
    frequencies = base_frequencies(theta, head_dim)
    for positions in _TRAINED_POSITIONS:
        scaling = RopeScaling("llama3", float(factors.max()), original_max_positions=positions)
        expected = frequencies / scaled_frequencies(frequencies, scaling)
        if np.allclose(expected, factors, rtol=1e-4):
            return scaling
    raise ConfigError(
        f"GGUF {ROPE_FACTORS}: the divisors are not those of Llama 3; other scalings are not "
        "supported"
    )
