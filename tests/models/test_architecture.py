from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from factory import FAMILIES, tiny_config

import bcquant.models
from bcquant import registry
from bcquant.errors import ConfigError
from bcquant.models import architecture as a


def test_every_other_file_of_the_folder_is_a_family_table() -> None:
    files = set(registry.names("bcquant.models"))
    assert files >= a.MACHINERY
    for table in a.architectures():
        assert table.key in files - a.MACHINERY
    assert {t.key for t in a.architectures()} == {"baichuan", "llama", "mistral", "qwen2", "qwen3"}
    assert bcquant.models.__doc__


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_family_is_found_by_class_and_by_model_type(family: str) -> None:
    config = tiny_config(family)
    key = a.find_architecture(config).key
    assert family.startswith(key) or key == "llama"
    del config["architectures"]
    assert a.find_architecture(config).key == key


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "neither"),
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"architectures": ["Qwen2MoeForCausalLM"]}, "did you mean 'Qwen2ForCausalLM'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a supported decoder"),
        ({"architectures": []}, "list of one class name"),
        ({"architectures": "LlamaForCausalLM"}, "list of one class name"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "qwen3"}, "different families"),
    ],
)
def test_unclear_family_is_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        a.find_architecture(config)


def test_unknown_gguf_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'qwen3'"):
        a.find_gguf_architecture({"general.architecture": "qwen3moe"})
    with pytest.raises(ConfigError, match="is missing"):
        a.find_gguf_architecture({})


def test_canonical_tensors_of_baichuan_7b_count_its_parameters() -> None:
    config = {
        "architectures": ["BaiChuanForCausalLM"],
        "model_type": "baichuan",
        "vocab_size": 64000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
    }
    cfg = a.find_architecture(config).parse(config)
    total = 0
    for _, shape in a.canonical_tensors(cfg):
        total += shape[0] * (shape[1] if len(shape) == 2 else 1)
    assert total == 7_000_559_616  # as published


def test_quantizable_modules_are_the_stages_in_order() -> None:
    cfg = a.find_architecture(tiny_config("qwen2")).parse(tiny_config("qwen2"))
    names = a.quantizable_modules(cfg, 1)
    assert names == [f"model.layers.1.{s}" for stage in a.STAGES for s in stage]
    shapes = dict(a.canonical_tensors(cfg))
    for name in names:
        short = name.removeprefix("model.layers.1.")
        assert shapes[f"{name}.weight"] == a.module_shape(cfg, short)
        assert (f"{name}.bias" in shapes) == a.has_bias(cfg, short)


def test_unknown_module_is_refused_by_its_nearest_name() -> None:
    cfg = a.find_architecture(tiny_config("llama")).parse(tiny_config("llama"))
    with pytest.raises(ConfigError, match=r"did you mean 'mlp.up_proj'"):
        a.module_shape(cfg, "mlp.up_prj")


def test_tables_are_files_beside_the_decoder() -> None:
    folder = Path(str(bcquant.models.__file__)).parent
    assert all((folder / f"{table.key}.py").is_file() for table in a.architectures())
