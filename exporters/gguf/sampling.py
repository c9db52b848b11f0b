"""Generation defaults of a checkpoint as `general.sampling.*` keys.

Begin and end tokens are the tokenizer's keys.
"""

from __future__ import annotations

from bcquant.models.source import ModelSource
from bcquant.runtime.sampling_defaults import GGUF_KEYS, sampling_defaults

from .file import Metadata, Value


def sampling_metadata(source: ModelSource) -> Metadata:
    """The sampling settings that a checkpoint suggests; empty if it suggests none.

    `do_sample: false` means greedy decoding, which llama.cpp spells as temperature 0.

    Raises:
        CheckpointError: generation_config.json is not readable JSON.
    """
    return {
        GGUF_KEYS[name]: Value("i32" if name == "top_k" else "f32", value)
        for name, value in sampling_defaults(source).items()
    }
