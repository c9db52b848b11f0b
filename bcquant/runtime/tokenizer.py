"""The tokenizer of a checkpoint folder or a GGUF file.

`tokenizer.json` is read by the `tokenizers` library, `tokenizer.model` by `sentencepiece`, and the
vocabulary inside a GGUF is rebuilt for one of the two (gguf_tokenizer.py).
"""

from __future__ import annotations

from pathlib import Path

from bcquant.errors import CheckpointError
from bcquant.runtime.folder_tokenizer import open_folder_tokenizer
from bcquant.runtime.gguf_tokenizer import open_gguf_tokenizer
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer

__all__ = ["SpecialTokens", "Tokenizer", "open_tokenizer"]


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
