"""Target `web`: what a browser needs beside model.onnx, and a page that runs it.

The page (web_page/) is plain modules without a framework. It takes onnxruntime-web from a folder
that its user names, reads web_config.json and generates greedily with the cache.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bcquant.errors import ConfigError
from bcquant.models.source import ModelSource
from bcquant.runtime.chat import Message, render_chat
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.tokenizer import open_tokenizer

from .options import OnnxOptions

PAGE_FILES = ("index.html", "main.js", "model.js", "tokenizer.js")
_QUESTION = "{question}"


def extra_files(
    source: ModelSource, options: OnnxOptions, data_files: tuple[str, ...]
) -> dict[str, bytes | str]:
    """The page and its web_config.json.

    Raises:
        CheckpointError, ConfigError: the tokenizer cannot be read.
    """
    folder = Path(__file__).parent / "web_page"
    files: dict[str, bytes | str] = {name: (folder / name).read_bytes() for name in PAGE_FILES}
    config = web_config(source, options, data_files)
    files["web_config.json"] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return files


def web_config(
    source: ModelSource, options: OnnxOptions, data_files: tuple[str, ...]
) -> dict[str, Any]:
    """What model.js and main.js must know of the model."""
    cfg, tokenizer = source.config, open_tokenizer(source.path)
    return {
        "name": _name(source.path),
        "data_files": list(data_files),
        "variant": options.variant,
        "float_bytes": 4 * sum(math.prod(source.shape(name)) for name in source.names()),
        "has_float16": options.float16 or _has_float16(source),
        "num_layers": cfg.num_layers,
        "num_kv_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_positions": cfg.max_positions,
        "cache_dtype": "float16" if options.float16 else "float32",
        "eos_ids": list(tokenizer.eos_ids or cfg.eos_ids),
        "prefix_ids": list(tokenizer.special.prefix_ids),
        "chat": _chat_frame(tokenizer),
    }


def notes(source: ModelSource, options: OnnxOptions) -> tuple[str, ...]:
    """What a user of the page should know, one sentence each."""
    num_weights = sum(math.prod(source.shape(name)) for name in source.names())
    found = []
    if source.quant is not None and options.variant == "ort":
        found.append(
            "without a GPU onnxruntime-web expands each 4-bit matrix anew at every token; "
            "--variant std is expanded once and several times faster there, if 4 bytes for each of "
            f"the {num_weights / 1e6:.0f} million weights are 1600 MB or less"
        )
    if options.float16 or _has_float16(source):
        found.append("a GPU without float16 cannot run it; the page then takes the CPU")
    return tuple(found)


def _name(path: Path) -> str:
    return path.stem if path.suffix.lower() == ".gguf" else path.name


def _has_float16(source: ModelSource) -> bool:
    return any(source.stored_dtype(name) == "F16" for name in source.names())


def _chat_frame(tokenizer: Tokenizer) -> dict[str, str] | None:
    """What stands before and after a first question, as a page cannot run a Jinja template.

    None for a model without a template, and for one whose text depends on the day or on more than
    the question.
    """
    template = tokenizer.chat_template
    if template is None or "strftime_now" in template:
        return None
    bos = "" if tokenizer.bos_id is None else tokenizer.backend.piece(tokenizer.bos_id) or ""
    eos = tokenizer.backend.piece(tokenizer.eos_ids[0]) or "" if tokenizer.eos_ids else ""
    messages = [Message(role="user", content=_QUESTION)]
    try:
        text = render_chat(template, messages, bos_token=bos, eos_token=eos)
    except ConfigError:
        return None
    before, found, after = text.partition(_QUESTION)
    return {"before": before, "after": after} if found and _QUESTION not in after else None
