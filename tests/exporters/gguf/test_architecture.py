from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from factory import tiny_config

from bcquant.exporters.gguf.architecture import find_target, model_metadata, rope_divisors
from bcquant.models.architecture import find_architecture
from bcquant.models.gguf_config import llama3_scaling, parse_gguf
from bcquant.spec.model_config import ModelConfig, RopeScaling


def config(family: str, **over: Any) -> ModelConfig:
    raw = tiny_config(family, **over)
    return find_architecture(raw).parse(raw)


@pytest.mark.parametrize(
    ("family", "over", "name", "is_permuted"),
    [
        ("llama", {}, "llama", True),
        ("smollm2", {}, "llama", True),
        ("llama_bias", {}, "llama", True),
        ("mistral", {"sliding_window": None}, "llama", True),
        ("mistral", {"sliding_window": 256}, "llama", True),
        ("baichuan", {}, "llama", True),
        ("baichuan2", {}, "llama", True),
        ("baichuan13b", {"num_hidden_layers": 40}, "baichuan", True),
        ("qwen2", {}, "qwen2", False),
        ("qwen3", {}, "qwen3", False),
    ],
)
def test_each_family_has_its_graph(
    family: str, over: dict[str, Any], name: str, is_permuted: bool
) -> None:
    target = find_target(config(family, **over))
    assert (target.name, target.is_permuted, target.refusals) == (name, is_permuted, ())


@pytest.mark.parametrize(
    ("family", "over", "message"),
    [
        ("baichuan13b", {}, "ALiBi and 2 layers; llama.cpp's graph of ALiBi Baichuan is chosen by"),
        ("mistral", {}, "sliding window of 7 tokens is smaller than its context of 256"),
        ("qwen2", {"use_sliding_window": True}, "sliding window of 8 tokens"),
        ("qwen3", {"attention_bias": True}, "biases on q, k, v; llama.cpp's qwen3 graph has none"),
        (
            "qwen2",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
            "llama3 rope scaling; llama.cpp's qwen2 graph has none",
        ),
    ],
)  # fmt: skip
def test_what_a_graph_leaves_out_is_refused(
    family: str, over: dict[str, Any], message: str
) -> None:
    refusals = find_target(config(family, **over)).refusals
    assert any(message in refusal for refusal in refusals), refusals


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm2", "llama_linear"])
def test_our_reader_gets_the_same_config_back(family: str) -> None:
    cfg = config(family)
    target = find_target(cfg)
    values = {k: v.data for k, v in model_metadata(cfg, target, "tiny", 2).items()}
    ids = {"bos": 1, "eos": 2, "padding": 0}
    values |= {f"tokenizer.ggml.{key}_token_id": i for key, i in ids.items()}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (cfg.vocab_size, cfg.hidden_size)}
    if not cfg.tie_embeddings:
        shapes["output.weight"] = shapes["token_embd.weight"]
    if cfg.qkv_bias:
        shapes["blk.0.attn_q.bias"] = (cfg.q_size,)
    if cfg.qk_norm:
        shapes["blk.0.attn_q_norm.weight"] = (cfg.head_dim,)
    arch = find_architecture(tiny_config(family))
    assert parse_gguf(arch, values, shapes) == cfg


def test_llama3_divisors_are_read_back_as_the_same_scaling() -> None:
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    cfg = replace(config("llama3"), rope_scaling=scaling)
    divisors = rope_divisors(cfg)
    assert divisors is not None and divisors.dtype == np.float32
    assert llama3_scaling(divisors, cfg.rope_theta, cfg.head_dim) == scaling


def test_other_models_have_no_divisors() -> None:
    assert rope_divisors(config("llama")) is None
    assert rope_divisors(config("llama_linear")) is None
