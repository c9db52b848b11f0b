"""bcquant.quant.awq_config: AWQ dicts as AutoAWQ and gptqmodel write them."""

from __future__ import annotations

from typing import Any

import pytest

from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.quant_configs import QuantSpec, parse_quant_config
from bcquant.spec.quant_format import QuantFormat

# config.json of AutoAWQ 0.2, and what gptqmodel 7.6 saves (its meta left out).
AUTOAWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True,
    "modules_to_not_convert": None,
}  # fmt: skip
GPTQMODEL = {
    "bits": 4, "checkpoint_format": "gemm", "desc_act": False, "format": "gemm", "group_size": 32,
    "lm_head": False, "method": "awq", "pack_dtype": "int32", "quant_method": "awq",
    "version": "gemm", "zero_point": False,
}  # fmt: skip


def parse(entry: dict[str, Any]) -> QuantSpec:
    spec = parse_quant_config({"model_type": "llama", "quantization_config": entry})
    assert spec is not None
    return spec


def test_autoawq_config_is_asymmetric_4_bit() -> None:
    spec = parse(AUTOAWQ)
    assert (spec.method, spec.version) == ("awq", "gemm")
    assert spec.format == QuantFormat(4, 128, symmetric=False)
    assert spec.format_of("model.layers.0.mlp.up_proj") == spec.format
    assert spec.format_of("lm_head") is None


def test_gptqmodel_config_without_zero_points_is_symmetric() -> None:
    assert parse(GPTQMODEL).format == QuantFormat(4, 32, symmetric=True)
    both = parse_quant_config({"quantization_config": GPTQMODEL}, GPTQMODEL)
    assert both == parse(GPTQMODEL)


def test_first_spelling_of_the_keys_is_read() -> None:
    entry = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    assert parse(entry).format == QuantFormat(4, 64, symmetric=False)


def test_modules_to_not_convert_stay_float() -> None:
    spec = parse({**AUTOAWQ, "modules_to_not_convert": ["model.layers.1", "down_proj"]})
    assert spec.format_of("model.layers.1.mlp.up_proj") is None
    assert spec.format_of("model.layers.11.mlp.up_proj") == spec.format
    assert spec.format_of("model.layers.0.mlp.down_proj") is None
    assert spec.format_of("model.layers.0.mlp.down_proj_2") == spec.format


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "gemv"}, "AWQ version 'gemv' is laid out for another kernel"),
        ({"version": "gemv_fast"}, "'gemv_fast'"),
        ({"version": "marlin"}, "'marlin'"),
        ({"bits": 8}, "AWQ with bits 8 cannot be read; 4 bits"),
        ({"group_size": 0}, "group_size is 0"),
        ({"dynamic": {".*": {"bits": 8}}}, "`dynamic` settings"),
    ],
)
def test_unreadable_settings_are_config_errors(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**AUTOAWQ, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": "4"}, "bits is '4'"),
        ({"group_size": None}, "group_size is None"),
        ({"zero_point": 1}, "zero_point is 1"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is a str"),
        ({"format": "gemv"}, "version 'gemm', format 'gemv'; one layout"),
    ],
)
def test_malformed_dicts_are_checkpoint_errors(change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse({**AUTOAWQ, **change})
