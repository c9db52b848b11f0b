"""config.json of a quantized checkpoint, in the spelling of today's transformers."""

from __future__ import annotations

from typing import Any

from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import ModelSource

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
