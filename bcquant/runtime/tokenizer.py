"""The tokenizer of a checkpoint folder or a GGUF file.

`tokenizer.json` is read by the `tokenizers` library, `tokenizer.model` by `sentencepiece`, and the
vocabulary inside a GGUF is rebuilt for one of the two (gguf_tokenizer.py).
"""

from __future__ import annotations

from pathlib import Path

from bcquant.errors import CheckpointError
from bcquant.models.source import ModelSource
from bcquant.runtime.folder_tokenizer import open_folder_tokenizer
from bcquant.runtime.gguf_tokenizer import open_gguf_tokenizer
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer

__all__ = ["SpecialTokens", "Tokenizer", "has_tokenizer", "open_tokenizer"]


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Open the tokenizer of a checkpoint.

    Args:
        path: a folder with `tokenizer.json` (preferred) or `tokenizer.model`, a GGUF file, or a
            weight file in such a folder.
    Raises:
        CheckpointError: nothing to read there, or a file is malformed.
        ConfigError: a tokenizer of a kind that is not supported; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() == ".gguf":
        return open_gguf_tokenizer(path)
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such file or folder; give a checkpoint folder or a .gguf file"
        )
    return open_folder_tokenizer(path)


def has_tokenizer(source: ModelSource) -> bool:
    """Whether the checkpoint brings a tokenizer; one that is damaged counts."""
    if source.reader.kind == "gguf":
        return "tokenizer.ggml.model" in source.reader.metadata
    folder = source.path if source.path.is_dir() else source.path.parent
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
