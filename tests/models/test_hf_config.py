from __future__ import annotations

import json
from dataclasses import replace

import pytest
from factory import FAMILIES, tiny_config

from bcquant.errors import ExportError
from bcquant.models.architecture import find_architecture
from bcquant.models.hf_config import to_hf_config
from bcquant.spec.model_config import ModelConfig

ROPE_FAMILIES = sorted(name for name in FAMILIES if "13b" not in name)


def parse(family: str) -> ModelConfig:
    config = tiny_config(family)
    return find_architecture(config).parse(config)


@pytest.mark.parametrize("family", ROPE_FAMILIES)
def test_written_config_reads_back_as_the_same_model(family: str) -> None:
    cfg = parse(family)
    written = json.loads(json.dumps(to_hf_config(cfg)))
    again = find_architecture(written).parse(written)
    if cfg.family == "baichuan":  # written as LLaMA, with its head folded
        assert again.family == "llama"
        cfg = replace(cfg, family="llama", norm_head=False)
    assert again == cfg


@pytest.mark.judge
@pytest.mark.parametrize("family", ROPE_FAMILIES)
def test_transformers_reads_the_written_config(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    cfg = parse(family)
    written = to_hf_config(cfg)
    judge = transformers.AutoConfig.for_model(**written)
    assert type(judge).__name__ == written["architectures"][0].replace("ForCausalLM", "Config")
    assert (judge.head_dim if hasattr(judge, "head_dim") else None) in (None, cfg.head_dim)
    assert judge.num_key_value_heads == cfg.num_kv_heads
    assert judge.rope_parameters["rope_theta"] == cfg.rope_theta
    kind = "default" if cfg.rope_scaling is None else cfg.rope_scaling.kind
    assert judge.rope_parameters["rope_type"] == kind


def test_windowed_llama_of_a_gguf_is_written_as_mistral() -> None:
    cfg = replace(parse("mistral"), family="llama")
    assert to_hf_config(cfg)["model_type"] == "mistral"


def test_alibi_cannot_be_written() -> None:
    with pytest.raises(ExportError, match="ALiBi cannot be written as LLaMA"):
        to_hf_config(parse("baichuan13b"))


@pytest.mark.parametrize(
    ("family", "change", "complaint"),
    [
        ("llama", {"qkv_bias": True}, "a llama config cannot say: q,k,v bias True, o bias False"),
        ("llama", {"qk_norm": True}, "query and key norm True"),
        ("qwen2", {"windows": (4, 8)}, r"windows of \[4, 8\]"),
        ("mistral", {"windows": (7, None)}, "only some layers"),
        ("qwen2", {"family": "gemma"}, "'gemma' has no class"),
    ],
)
def test_what_no_config_can_say_is_refused(
    family: str, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ExportError, match=complaint):
        to_hf_config(replace(parse(family), **change))  # type: ignore[arg-type]
