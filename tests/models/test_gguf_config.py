from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcquant.errors import BcquantError, CheckpointError, ConfigError
from bcquant.models import gguf_config as g
from bcquant.models.architecture import find_gguf_architecture
from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import ModelConfig, RopeScaling

META: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
}
SHAPES = {"token_embd.weight": (96, 64), "output.weight": (96, 64)}


def parse(shapes: dict[str, tuple[int, ...]] | None = None, **over: Any) -> ModelConfig:
    meta = {**META, **{f"llama.{k}": v for k, v in over.items()}}
    return g.parse_gguf(find_gguf_architecture(meta), meta, SHAPES if shapes is None else shapes)


def test_epsilon_is_the_decimal_number_that_was_written() -> None:
    assert parse().rms_norm_eps == 1e-5


def test_missing_output_means_tied_embeddings() -> None:
    assert not parse().tie_embeddings
    assert parse({"token_embd.weight": (96, 64)}).tie_embeddings


def test_linear_scaling_is_read() -> None:
    over = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert parse(**over).rope_scaling == RopeScaling("linear", 4.0)


def test_baichuan_of_40_layers_has_alibi() -> None:
    meta = {k.replace("llama", "baichuan"): v for k, v in META.items()}
    meta |= {"general.architecture": "baichuan", "baichuan.block_count": 40}
    shapes = {"token_embd.weight": (125696, 64), "output.weight": (125696, 64)}
    cfg = g.parse_gguf(find_gguf_architecture(meta), meta, shapes)
    assert (cfg.position, cfg.norm_head) == ("alibi", True)


@pytest.mark.parametrize(
    ("over", "complaint"),
    [
        ({"expert_count": 8}, "mixture-of-experts"),
        ({"block_count": 10**9}, "block_count is 1000000000"),
        ({"block_count": 2.0}, "one whole number"),
        ({"attention.head_count": [4, 4]}, "one whole number"),
        ({"attention.head_count": 0}, "num_heads is 0"),
        ({"rope.freq_base": -1.0}, "above 0"),
        ({"rope.dimension_count": 8}, "rotary size 8"),
        ({"rope.scaling.type": "yarn"}, "'yarn' is not supported"),
    ],
)
def test_unusable_metadata_is_refused(over: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(**over)


def test_file_without_an_embedding_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"token_embd.weight is missing"):
        parse({})
    with pytest.raises(CheckpointError, match="no matrix"):
        parse({"token_embd.weight": ()})


def test_names_are_those_of_llama_cpp() -> None:
    assert g.gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert g.gguf_name("lm_head.weight") == "output.weight"
    assert g.gguf_name("model.layers.12.self_attn.q_proj.bias") == "blk.12.attn_q.bias"
    assert g.gguf_name("model.layers.0.post_attention_layernorm.weight") == "blk.0.ffn_norm.weight"
    with pytest.raises(ConfigError, match="not a canonical"):
        g.gguf_name("model.layers.0.mlp.gate.weight")


def test_permuted_rows_undo_the_interleaving_of_the_converter() -> None:
    canonical = np.arange(3 * 8)
    stored = canonical.reshape(3, 2, 4).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(stored[g.permuted_rows(24, 8)], canonical)


def divisors(scaling: RopeScaling) -> np.ndarray[Any, np.dtype[np.float32]]:
    frequencies = base_frequencies(500000.0, 128)
    return (frequencies / scaled_frequencies(frequencies, scaling)).astype(np.float32)


@pytest.mark.parametrize(
    ("factor", "positions"), [(8.0, 8192), (32.0, 8192), (8.0, 32), (4.0, 4096)]
)
def test_llama3_scaling_is_recovered_from_the_divisors(factor: float, positions: int) -> None:
    scaling = RopeScaling("llama3", factor, original_max_positions=positions)
    assert g.llama3_scaling(divisors(scaling), 500000.0, 128) == scaling


def test_divisors_of_another_scaling_are_refused() -> None:
    with pytest.raises(ConfigError, match="not those of Llama 3"):
        g.llama3_scaling(divisors(RopeScaling("llama3", 8.0, 1.0, 3.0)), 500000.0, 128)
    with pytest.raises(ConfigError, match="64 numbers"):
        g.llama3_scaling(np.ones(32, np.float32), 500000.0, 128)
    with pytest.raises(ConfigError, match="64 numbers"):
        g.llama3_scaling(np.full(64, np.inf, np.float32), 500000.0, 128)


VALUES = st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=3)


@given(
    changes=st.dictionaries(
        st.sampled_from([k.removeprefix("llama.") for k in META] + ["attention.key_length"]), VALUES
    ),
    shape=st.lists(st.integers(0, 100), max_size=3),
)
def test_any_metadata_parses_or_is_refused(changes: dict[str, Any], shape: list[int]) -> None:
    try:
        parse({"token_embd.weight": tuple(shape)}, **changes)
    except BcquantError as error:
        assert str(error)
