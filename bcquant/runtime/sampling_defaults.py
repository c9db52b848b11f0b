"""The sampling settings that a checkpoint suggests, whichever file they stand in."""

from __future__ import annotations

from typing import Any

from bcquant.models.source import ModelSource
from bcquant.runtime.folder_tokenizer import read_json

# generation_config.json's key -> GGUF's key, from the key list of the ggml project.
GGUF_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def sampling_defaults(source: ModelSource) -> dict[str, int | float]:
    """Settings by generation_config.json's names; empty if the checkpoint suggests none.

    `top_k` is an int, the others are floats; a value that is no number of theirs is left out.
    `do_sample: false` means greedy decoding: temperature 0 and nothing else.

    Raises:
        CheckpointError: generation_config.json is not readable JSON.
    """
    if source.reader.kind == "gguf":
        found = {name: source.reader.metadata.get(key) for name, key in GGUF_KEYS.items()}
    else:
        folder = source.path if source.path.is_dir() else source.path.parent
        found = read_json(folder / "generation_config.json")
        if found.get("do_sample") is False:
            return {"temperature": 0.0}
    return {
        name: int(value) if name == "top_k" else float(value)
        for name in GGUF_KEYS
        if (value := _number(found.get(name))) is not None
    }


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) < 2**31 else None
