from __future__ import annotations

from typing import Any

import pytest
from factory import FAMILIES, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from bcquant.errors import BcquantError, ConfigError
from bcquant.models.architecture import find_architecture
from bcquant.models.hf_fields import MAX_LAYERS
from bcquant.spec.model_config import ModelConfig, RopeScaling


def parse(family: str, **over: Any) -> ModelConfig:
    config = tiny_config(family, **over)
    return find_architecture(config).parse(config)


def test_both_spellings_of_rope_mean_the_same() -> None:
    older = parse("llama3")
    rope = {**FAMILIES["llama3"]["rope_scaling"], "rope_theta": 500000.0}
    newer = parse("llama3", rope_theta=None, rope_scaling=None, rope_parameters=rope)
    assert newer == older
    assert older.rope_theta == 500000.0
    assert older.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 32)


def test_oldest_spelling_of_the_scaling_kind_is_read() -> None:
    assert parse("llama_linear").rope_scaling == RopeScaling("linear", 2.0)


def test_null_means_absent() -> None:
    config = tiny_config("llama")
    config |= {"num_key_value_heads": None, "rope_scaling": None, "head_dim": None}
    cfg = find_architecture(config).parse(config)
    assert (cfg.num_kv_heads, cfg.head_dim, cfg.rope_scaling) == (4, 16, None)


@pytest.mark.parametrize(
    ("over", "complaint"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": "linear"}, "an object is needed"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "per layer type"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}}, "two places"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"num_hidden_layers": 10**9}, f"1 to {MAX_LAYERS}"),
        ({"num_attention_heads": 5}, "head_dim is missing"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ({"eos_token_id": "2"}, "token ids are needed"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused(over: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse("llama", **over)


def test_llama3_scaling_with_its_bounds_swapped_is_refused() -> None:
    rope = {**FAMILIES["llama3"]["rope_scaling"], "low_freq_factor": 4.0}
    with pytest.raises(ConfigError, match="not above low_freq_factor"):
        parse("llama3", rope_scaling=rope)


def test_token_ids_may_be_lists_and_minus_one_is_none() -> None:
    cfg = parse("llama", eos_token_id=[2, 7], pad_token_id=-1)
    assert (cfg.bos_id, cfg.eos_ids, cfg.pad_id) == (1, (2, 7), None)


def test_mistral_window_is_4096_when_missing_and_none_when_null() -> None:
    assert parse("mistral").windows == (7, 7)
    config = tiny_config("mistral", sliding_window=None)
    assert find_architecture(config).parse(config).windows == (4096, 4096)
    config["sliding_window"] = None
    assert find_architecture(config).parse(config).windows == (None, None)


def test_qwen_windows_are_off_unless_asked_for() -> None:
    assert parse("qwen2").windows == (None, None)
    assert parse("qwen2", use_sliding_window=True).windows == (None, 8)
    kinds = ["sliding_attention", "full_attention"]
    assert parse("qwen2", use_sliding_window=True, layer_types=kinds).windows == (8, None)


@pytest.mark.parametrize(
    ("over", "complaint"),
    [
        ({"layer_types": ["full_attention"]}, "list of 2"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window is 0"),
    ],
)
def test_wrong_windows_are_refused(over: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse("qwen2", **over)


def test_qwen3_has_head_norms_and_128_wide_heads_by_default() -> None:
    cfg = parse("qwen3", head_dim=None)
    assert cfg.qk_norm and not cfg.qkv_bias and cfg.head_dim == 128


def baichuan(class_name: str, **over: Any) -> ModelConfig:
    return parse("baichuan2", architectures=[class_name], norm_head=None, **over)


def test_baichuan_is_told_apart_by_class_vocabulary_and_positions() -> None:
    first = baichuan("BaiChuanForCausalLM", vocab_size=64000)
    assert (first.position, first.norm_head) == ("rope", False)
    second = baichuan("BaichuanForCausalLM", vocab_size=125696)
    assert (second.position, second.norm_head) == ("rope", True)
    large = baichuan("BaichuanForCausalLM", vocab_size=64000, max_position_embeddings=None)
    assert (large.position, large.norm_head) == ("alibi", False)
    wide = {"hidden_size": 5120, "num_attention_heads": 40}
    assert baichuan("BaichuanForCausalLM", vocab_size=125696, **wide).position == "alibi"


def test_baichuan_13b_takes_its_length_from_model_max_length() -> None:
    assert parse("baichuan13b", model_max_length=512).max_positions == 512


def test_unknown_baichuan_vocabulary_needs_the_norm_head_key() -> None:
    with pytest.raises(ConfigError, match="norm_head"):
        baichuan("BaichuanForCausalLM", vocab_size=70000)
    assert parse("baichuan2", vocab_size=70000, norm_head=False).norm_head is False


def test_contradicting_baichuan_is_refused() -> None:
    with pytest.raises(ConfigError, match="contradicts"):
        baichuan("BaiChuanForCausalLM", hidden_size=5120)
    with pytest.raises(ConfigError, match="W_pack"):
        parse("baichuan", num_key_value_heads=2)


def test_baichuan_w_pack_rows_are_q_then_k_then_v() -> None:
    config = tiny_config("baichuan")
    arch = find_architecture(config)
    cfg = arch.parse(config)
    found = [arch.locate(cfg, f"model.layers.1.self_attn.{p}_proj.weight") for p in ("q", "k", "v")]
    assert {ref.name for ref in found} == {"model.layers.1.self_attn.W_pack.weight"}
    assert [ref.rows for ref in found] == [(0, 64), (64, 128), (128, 192)]
    assert arch.locate(cfg, "model.norm.weight").rows is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
KEYS = sorted({*tiny_config("llama3"), *tiny_config("qwen2"), *tiny_config("baichuan13b")})


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    changes=st.dictionaries(st.sampled_from([*KEYS, "rope_parameters", "layer_types"]), JSON),
)
def test_any_value_under_any_key_parses_or_is_refused(family: str, changes: dict[str, Any]) -> None:
    config = {**tiny_config(family), **changes}
    try:
        find_architecture(config).parse(config)
    except BcquantError as error:
        assert str(error)


def test_number_too_large_for_a_float_is_refused() -> None:
    with pytest.raises(ConfigError, match="rope_theta"):
        parse("llama", rope_theta=10**400)
