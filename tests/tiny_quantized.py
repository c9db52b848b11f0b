"""Tiny quantized checkpoints: `factory`'s models rounded to nearest, stored as each format does.

`quantized_folder(tmp_path / "m", "v1", QuantFormat(4, 32), "qwen2")` writes one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory import make_tiny

from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.writer import write_safetensors
from bcquant.quant.grid import quantize_nearest
from bcquant.quant.quant_configs import compressed_config, gptq_config
from bcquant.quant.repack import to_compressed, to_gptq, to_int8
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe, SolveOptions

# Round to nearest through the pipeline: seconds for a trained model, where solving takes minutes.
NEAREST = Recipe(
    QuantFormat(4, 64),
    solver="rtn",
    solve=SolveOptions(scale_search=False),
    calib=CalibOptions(num_tokens=512, seq_len=64),
    retarget_strengths=(),
    guard=False,
)


def quantized_folder(
    folder: Path, target: str, fmt: QuantFormat, family: str = "llama", **factory_args: Any
) -> Path:
    """A tiny model whose blocks' Linear weights are rounded to nearest and stored as `target`.

    Args:
        target: "v1", "v2", "compressed-tensors" or "int-quantized".
        factory_args: of `factory.make_tiny`.
    """
    make_tiny(family, folder, "F16", **factory_args)
    return quantize_folder(folder, target, fmt)


def quantize_folder(folder: Path, target: str, fmt: QuantFormat) -> Path:
    """The same to a float folder that is there already; its other files stay."""
    tensors: dict[str, Any] = {}
    with open_checkpoint(folder) as reader:
        for name in reader.tensors:
            module = name.removesuffix(".weight")
            if ".layers." not in name or not module.endswith(("proj", "W_pack")):
                tensors[name] = reader.read(name)
                continue
            q = quantize_nearest(reader.read_f32(name), fmt)
            if target == "int-quantized":
                parts = to_int8(q)
            elif target == "compressed-tensors":
                parts = to_compressed(q)
            else:
                parts = to_gptq(q, target)
            tensors |= {f"{module}.{suffix}": array for suffix, array in parts.items()}
        config = dict(reader.config)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    is_gptq = target in ("v1", "v2")
    config["quantization_config"] = gptq_config(fmt, target) if is_gptq else compressed_config(fmt)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
