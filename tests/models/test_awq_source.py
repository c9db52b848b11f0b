"""bcquant.models.quantized_source on AWQ folders: the same integers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_awq import awq_folder
from tiny_quantized import quantized_folder

from bcquant.errors import CheckpointError
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.writer import write_safetensors
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

MODULE = "model.layers.0.mlp.up_proj"


def rewrite(folder: Path, **changes: Any) -> Path:
    """Replace or add tensors of one module by suffix."""
    with open_checkpoint(folder) as reader:
        tensors: dict[str, Any] = {name: reader.read(name) for name in reader.tensors}
    tensors |= {f"{MODULE}.{suffix}": array for suffix, array in changes.items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("fmt", [QuantFormat(4, 32, False), QuantFormat(4, -1, True)])
def test_awq_and_gptq_folders_of_a_model_are_equal(
    tmp_path: Path, family: str, fmt: QuantFormat
) -> None:
    awq = awq_folder(tmp_path / "awq", fmt, family)
    gptq = quantized_folder(tmp_path / "gptq", "v2", fmt, family)
    with open_model(awq) as a, open_model(gptq) as b:
        assert a.quant is not None and (a.quant.method, a.quant.format) == ("awq", fmt)
        assert a.names() == b.names()
        for name in a.names():
            assert np.array_equal(a.weight(name), b.weight(name)), name
            if a.stored_dtype(name) != "quantized":
                continue
            module = name.removesuffix(".weight")
            left, right = a.quantized(module), b.quantized(module)
            assert left is not None and right is not None and left.format == right.format
            for part in ("codes_NK", "scales_NG", "zeros_NG"):
                assert np.array_equal(getattr(left, part), getattr(right, part)), module
            assert a.format_of(module) == fmt


def test_packed_shape_is_checked_when_opened(tmp_path: Path) -> None:
    folder = awq_folder(tmp_path, QuantFormat(4, 32, False))
    rewrite(folder, qweight=np.zeros((8, 96), np.int32))  # as GPTQ would pack it
    with pytest.raises(CheckpointError, match=r"qweight' has shape \[8, 96\]; \[64, 12\]"):
        open_model(folder)


def test_column_index_is_no_part_of_awq(tmp_path: Path) -> None:
    folder = rewrite(awq_folder(tmp_path, QuantFormat(4, 32, False)), g_idx=np.zeros(64, np.int32))
    with pytest.raises(CheckpointError, match=r"g_idx' is not a tensor of the llama model"):
        open_model(folder)


def test_damaged_module_is_named_when_read(tmp_path: Path) -> None:
    folder = rewrite(
        awq_folder(tmp_path, QuantFormat(4, 32, False)), scales=np.ones((5, 96), np.float16)
    )
    with open_model(folder) as source, pytest.raises(CheckpointError, match=f"{MODULE}: .*5 group"):
        source.quantized(MODULE)


def test_quantized_module_that_the_config_leaves_float_is_refused(tmp_path: Path) -> None:
    folder = awq_folder(tmp_path, QuantFormat(4, 32, False))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["up_proj"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="up_proj holds quantized tensors but"):
        open_model(folder)
