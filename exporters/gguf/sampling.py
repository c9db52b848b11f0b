"""Generation defaults of a checkpoint as `general.sampling.*` keys.

Source: the GGUF key list of the ggml project. Begin and end tokens are the tokenizer's keys.
"""

from __future__ import annotations

from typing import Any

from bcquant.models.source import ModelSource
from bcquant.runtime.folder_tokenizer import read_json

from .file import Metadata, Value

_PREFIX = "general.sampling."
# generation_config.json's key -> (GGUF's key, kind).
_KEYS = {
    "temperature": ("temp", "f32"),
    "top_k": ("top_k", "i32"),
    "top_p": ("top_p", "f32"),
    "min_p": ("min_p", "f32"),
    "repetition_penalty": ("penalty_repeat", "f32"),
}


def sampling_metadata(source: ModelSource) -> Metadata:
    """The sampling settings that a checkpoint suggests; empty if it suggests none.

    `do_sample: false` means greedy decoding, which llama.cpp spells as temperature 0.

    Raises:
        CheckpointError: generation_config.json is not readable JSON.
    """
    if source.reader.kind == "gguf":
        found = {key: source.reader.metadata.get(_PREFIX + key) for key, _ in _KEYS.values()}
    else:
        folder = source.path if source.path.is_dir() else source.path.parent
        stored = read_json(folder / "generation_config.json")
        found = {key: stored.get(name) for name, (key, _) in _KEYS.items()}
        if stored.get("do_sample") is False:
            found = {"temp": 0.0}
    kinds = dict(_KEYS.values())
    return {
        _PREFIX + key: Value(kind, int(value) if kind == "i32" else float(value))
        for key, kind in kinds.items()
        if (value := _number(found.get(key))) is not None
    }


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 2**31 else None
