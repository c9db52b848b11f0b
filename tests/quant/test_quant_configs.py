"""bcquant.quant.quant_configs: dicts of config.json, ours and other writers'."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bcquant import __version__
from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.quant_configs import (
    Override,
    compressed_config,
    gptq_config,
    parse_quant_config,
)
from bcquant.spec.quant_format import QuantFormat

AUTOGPTQ = {
    "bits": 4, "group_size": 128, "damp_percent": 0.1, "desc_act": False, "sym": True,
    "true_sequential": True, "model_name_or_path": None, "model_file_base_name": "gptq_model-4bit",
}  # fmt: skip


def wrap(inner: Any) -> dict[str, Any]:
    return {"model_type": "llama", "quantization_config": inner}


def compressed(**weights: Any) -> dict[str, Any]:
    written = compressed_config(QuantFormat(4, 64))
    written["config_groups"]["group_0"]["weights"].update(weights)
    return wrap(written)


def test_gptq_config_is_the_documented_dict() -> None:
    assert gptq_config(QuantFormat(4, 128), "v1", {"seed": 7}) == {
        "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False,
        "quant_method": "gptq", "method": "gptq", "checkpoint_format": "gptq", "format": "gptq",
        "pack_dtype": "int32", "dynamic": None, "true_sequential": True, "static_groups": True,
        "damp_percent": 0.01, "meta": {"quantizer": [f"bcquant:{__version__}"], "seed": 7},
    }  # fmt: skip


def test_compressed_config_is_the_documented_dict() -> None:
    assert compressed_config(QuantFormat(4, 128)) == {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "global_compression_ratio": None,
        "kv_cache_scheme": None, "ignore": ["lm_head"], "version": "0.20.0",
        "config_groups": {"group_0": {
            "targets": ["Linear"], "format": "pack-quantized",
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
                        "group_size": 128, "dynamic": False},
            "input_activations": None, "output_activations": None}},
    }  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("lm_head", [True, False])
def test_gptq_config_round_trip(
    bits: int, group_size: int, symmetric: bool, version: str, lm_head: bool
) -> None:
    fmt = QuantFormat(bits, group_size, symmetric)
    written = json.loads(json.dumps(gptq_config(fmt, version, lm_head=lm_head)))
    spec = parse_quant_config(wrap(written), written)
    assert spec is not None
    assert (spec.method, spec.version, spec.format, spec.lm_head) == (
        "gptq", version, fmt, lm_head,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fmt", "layout"),
    [
        (QuantFormat(4, 64), "pack-quantized"),
        (QuantFormat(3, -1, False), "pack-quantized"),
        (QuantFormat(8, -1), "pack-quantized"),
        (QuantFormat(8, -1, True, "int8_token"), "int-quantized"),
    ],
)
def test_compressed_config_round_trip(fmt: QuantFormat, layout: str) -> None:
    written = json.loads(json.dumps(compressed_config(fmt, ["lm_head", "re:.*mlp.*"])))
    spec = parse_quant_config(wrap(written))
    assert spec is not None
    assert (spec.method, spec.version, spec.format) == ("compressed-tensors", layout, fmt)
    assert not spec.lm_head
    assert spec.format_of("model.layers.0.mlp.up_proj") is None
    assert spec.format_of("model.layers.0.self_attn.q_proj") == fmt
    assert spec.format_of("lm_head") is None


def test_compressed_lm_head_is_quantized_unless_ignored() -> None:
    spec = parse_quant_config(wrap(compressed_config(QuantFormat(4, 64), [])))
    assert spec is not None and spec.lm_head
    assert spec.format_of("lm_head") == QuantFormat(4, 64)


def test_float_checkpoint_has_no_spec() -> None:
    assert parse_quant_config({"model_type": "llama"}) is None


def test_autogptq_folder_with_only_quantize_config_is_v1() -> None:
    spec = parse_quant_config({"model_type": "baichuan"}, AUTOGPTQ)
    assert spec is not None
    assert (spec.method, spec.version, spec.format) == ("gptq", "v1", QuantFormat(4, 128))
    assert spec.format_of("model.layers.0.self_attn.W_pack") == QuantFormat(4, 128)
    assert spec.format_of("lm_head") is None


def test_gptqmodel_format_key_alone_is_read() -> None:
    entry = {"method": "gptq", "format": "gptq_v2", "bits": 4, "group_size": 64, "sym": False}
    spec = parse_quant_config(wrap(entry))
    assert spec is not None and spec.version == "v2"


def test_dynamic_overrides_apply_in_order() -> None:
    rules = {
        "-:.*layers\\.0\\.": {},
        "+:.*down_proj": {"bits": 8, "group_size": 32},
        ".*up_proj": {"sym": False},
    }
    spec = parse_quant_config(wrap(gptq_config(QuantFormat(4, 64), "v1", dynamic=rules)))
    assert spec is not None
    assert spec.dynamic[0] == Override(".*layers\\.0\\.", None)
    assert spec.format_of("model.layers.0.mlp.down_proj") is None
    assert spec.format_of("model.layers.1.mlp.down_proj") == QuantFormat(8, 32)
    assert spec.format_of("model.layers.1.mlp.up_proj") == QuantFormat(4, 64, False)
    assert spec.format_of("model.layers.1.mlp.gate_proj") == QuantFormat(4, 64)


def test_compressed_groups_by_name_leave_other_modules_float() -> None:
    config = compressed()
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["targets"] = ["re:.*q_proj", "model.layers.0.mlp.up_proj"]
    spec = parse_quant_config(config)
    assert spec is not None
    assert spec.format_of("model.layers.3.self_attn.q_proj") == QuantFormat(4, 64)
    assert spec.format_of("model.layers.0.mlp.up_proj") == QuantFormat(4, 64)
    assert spec.format_of("model.layers.0.mlp.up_proj2") is None
    assert spec.format_of("model.layers.1.mlp.up_proj") is None


def test_second_compressed_group_gives_its_modules_their_own_bits() -> None:
    config = compressed()
    groups = config["quantization_config"]["config_groups"]
    groups["group_1"] = json.loads(json.dumps(groups["group_0"]))
    groups["group_1"]["targets"] = ["re:.*down_proj"]
    groups["group_1"]["weights"]["num_bits"] = 8
    spec = parse_quant_config(config)
    assert spec is not None
    assert spec.format_of("model.layers.0.mlp.down_proj") == QuantFormat(8, 64)
    assert spec.format_of("model.layers.0.mlp.up_proj") == QuantFormat(4, 64)


def test_contradicting_files_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"8-bit.*delete the wrong one"):
        parse_quant_config(wrap(gptq_config(QuantFormat(8, 128), "v1")), AUTOGPTQ)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "aqlm"}, "'aqlm' cannot be read"),
        ({"checkpoint_format": "marlin"}, "'marlin'"),
        ({"is_marlin_format": True}, "'marlin'"),
        ({"pack_dtype": "int64"}, "int64"),
        ({"bits": 5}, "bits is 5"),
        ({"group_size": 0}, "group_size is 0"),
        ({"dynamic": {"(": {"bits": 8}}}, "regular expression"),
    ],
)
def test_unreadable_gptq_settings_are_config_errors(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_quant_config({}, {**AUTOGPTQ, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": True}, "bits is True"),
        ({"group_size": None}, "group_size is None"),
        ({"sym": 1}, "sym is 1"),
        ({"lm_head": "no"}, "lm_head is 'no'"),
        ({"dynamic": []}, "dynamic is a list"),
        ({"dynamic": {".*": 8}}, "dynamic"),
        ({"checkpoint_format": "gptq", "format": "gptq_v2"}, "checkpoint_format 'gptq' but"),
    ],
)
def test_malformed_gptq_dicts_are_checkpoint_errors(change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_quant_config({}, {**AUTOGPTQ, **change})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"type": "float"}, "'float'"),
        ({"strategy": "block"}, "'block'"),
        ({"strategy": None, "group_size": None}, "None"),
        ({"num_bits": 6}, "bits is 6"),
    ],
)
def test_unreadable_compressed_weights_are_config_errors(weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_quant_config(compressed(**weights))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format": "float-quantized"}, ConfigError, "float-quantized"),
        ({"weights": None}, ConfigError, "weights are absent"),
        ({"input_activations": {"num_bits": 8, "strategy": "tensor"}}, ConfigError, "per token"),
        ({"output_activations": {"num_bits": 8}}, ConfigError, "output_activations"),
        ({"targets": "Linear"}, CheckpointError, "targets is a str"),
        ({"targets": []}, CheckpointError, "no target"),
        ({"targets": ["re:("]}, ConfigError, "regular expression"),
    ],
)
def test_unreadable_compressed_groups_are_refused(
    change: Any, error: type[Exception], message: str
) -> None:
    config = compressed()
    config["quantization_config"]["config_groups"]["group_0"].update(change)
    with pytest.raises(error, match=message):
        parse_quant_config(config)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"config_groups": {}}, CheckpointError),
        ({"config_groups": {"group_0": 1}}, CheckpointError),
        ({"ignore": [1]}, CheckpointError),
        ({"kv_cache_scheme": {"num_bits": 8}}, ConfigError),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, ConfigError),
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, ConfigError),
    ],
)
def test_unreadable_compressed_dicts_are_refused(change: Any, error: type[Exception]) -> None:
    config = compressed()
    config["quantization_config"].update(change)
    with pytest.raises(error):
        parse_quant_config(config)


@pytest.mark.parametrize("inner", [[], "gptq", 4])
def test_quantization_config_of_another_type_is_named(inner: Any) -> None:
    with pytest.raises(CheckpointError, match="a dict is needed"):
        parse_quant_config(wrap(inner))


def test_writers_refuse_what_they_cannot_say() -> None:
    w8a8 = QuantFormat(8, -1, True, "int8_token")
    with pytest.raises(ConfigError, match="int8_token"):
        gptq_config(w8a8, "v1")
    with pytest.raises(ConfigError, match="'v3'"):
        gptq_config(QuantFormat(), "v3")
    with pytest.raises(ConfigError, match="damp_percent is 0"):
        gptq_config(QuantFormat(), "v1", damp_percent=0)
    with pytest.raises(ConfigError, match="4-bit"):
        compressed_config(QuantFormat(4, -1, True, "int8_token"))
