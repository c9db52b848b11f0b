"""config.json of a quantized checkpoint, in the spelling of today's transformers."""

from __future__ import annotations

import re
from typing import Any

from bcquant.models.architecture import STAGES
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import ModelSource
from bcquant.quant.quant_configs import compressed_config, gptq_config
from bcquant.spec.recipe import Recipe

# Keys of a source's config.json that speak of the source's own files or storage.
DROPPED = (
    "auto_map", "quantization_config", "torch_dtype", "dtype", "_name_or_path",
    "transformers_version",
)  # fmt: skip


def output_config(source: ModelSource, keeps_names: bool, dtype: str) -> dict[str, Any]:
    """The model's config without its quantization.

    A source with a config.json of its own keeps it. GGUF gets one from its metadata; Baichuan with
    rotary positions becomes LLaMA, to which it is equal once W_pack is split.

    Args:
        keeps_names: the output keeps the source's tensor names.
        dtype: "float16" or "bfloat16", of everything that is not quantized.
    Raises:
        ExportError: the family has no class in transformers.
    """
    given = {k: v for k, v in source.reader.config.items() if k not in DROPPED}
    if given and (source.arch.key != "baichuan" or keeps_names):
        # A NormHead is folded into the written lm_head, whose rounded rows are then what runs.
        folded = {"norm_head": False} if source.config.norm_head else {}
        return {**given, **folded, "torch_dtype": dtype}
    return to_hf_config(source.config, dtype)


def quantization_config(recipe: Recipe, keeps_names: bool = False) -> dict[str, Any]:
    """The `quantization_config` of the output.

    Args:
        keeps_names: q, k and v are stored as one module, W_pack.
    """
    overrides = {
        _stored_module(module, keeps_names): fmt
        for module, fmt in recipe.overrides
        if fmt != recipe.format
    }
    if recipe.output == "compressed-tensors":
        return compressed_config(recipe.format, [] if recipe.lm_head else ["lm_head"], overrides)
    return gptq_config(
        recipe.format,
        "v2" if recipe.output == "gptq_v2" else "v1",
        {"recipe": recipe.as_dict()},
        lm_head=recipe.lm_head,
        damp_percent=recipe.solve.damp_percent,
        dynamic={
            f"{re.escape(module)}$": {
                "bits": fmt.bits, "group_size": fmt.group_size, "sym": fmt.symmetric,
            }
            for module, fmt in overrides.items()
        } or None,
    )  # fmt: skip


def _stored_module(module: str, keeps_names: bool) -> str:
    parent, _, leaf = module.rpartition(".")
    is_packed = keeps_names and f"self_attn.{leaf}" in STAGES[0]
    return f"{parent}.W_pack" if is_packed else module
