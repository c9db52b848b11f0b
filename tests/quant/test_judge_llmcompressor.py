"""Independent writer: modules that llm-compressor 0.14 quantized, solved and saved.

They were made by tests/vectors/make_llmcompressor.py, which needs packages older than ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from bcquant.quant.grid import dequantize
from bcquant.quant.quant_configs import QuantSpec, parse_quant_config
from bcquant.quant.repack import from_compressed, from_int8
from bcquant.spec.quant_format import QuantFormat

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "llmcompressor.safetensors"


def read(case: str) -> tuple[QuantSpec, dict[str, Any]]:
    with safe_open(VECTORS, "np") as file:
        config = json.loads(file.metadata()[f"{case}.config"])
        names = [name for name in file.keys() if name.startswith(f"{case}.")]  # noqa: SIM118
        tensors = {name.removeprefix(f"{case}."): file.get_tensor(name) for name in names}
    spec = parse_quant_config({"quantization_config": config})
    assert spec is not None
    return spec, tensors


@pytest.mark.parametrize(("case", "symmetric"), [("w4_sym", True), ("w4_asym", False)])
def test_packed_weights_are_its_floats(case: str, symmetric: bool) -> None:
    spec, tensors = read(case)
    assert (spec.method, spec.version) == ("compressed-tensors", "pack-quantized")
    assert spec.format == QuantFormat(4, 32, symmetric)
    assert spec.format_of("lm_head") is None  # as `ignore` says
    want = tensors.pop("float")
    q = from_compressed(tensors, 4, symmetric, 32)
    # float32 scale times a small integer: exact on both sides.
    assert np.array_equal(dequantize(q), want)
    assert len(np.unique(q.codes_NK)) == 16
    assert symmetric or len(np.unique(q.zeros_NG)) > 1


def test_w8a8_weights_are_its_integers_times_scales() -> None:
    spec, tensors = read("w8a8")
    assert (spec.version, spec.format) == ("int-quantized", QuantFormat(8, -1, True, "int8_token"))
    want = tensors["weight"].astype(np.float32) * tensors["weight_scale"].astype(np.float32)
    assert np.array_equal(dequantize(from_int8(tensors)), want)
