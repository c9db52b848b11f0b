"""Target `genai`: what onnxruntime-genai needs beside model.onnx, so that it loads the folder.

Its model type is "llama" for every family here: the type only says how inputs are prepared. Caches
are buffers of the full length that GroupQueryAttention fills in place, with ALiBi too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from bcquant.models.source import ModelSource
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer

from .genai_tokenizer import adapt_tokenizer
from .options import OnnxOptions


def extra_files(
    source: ModelSource, options: OnnxOptions, data_files: tuple[str, ...]
) -> dict[str, bytes | str]:
    """genai_config.json, and tokenizer.json where its spelling has to change.

    Raises:
        CheckpointError, ConfigError: the tokenizer cannot be read.
        ExportError: onnxruntime-genai would give other ids for ordinary text.
    """
    tokenizer = open_tokenizer(source.path)
    config = genai_config(source, tokenizer)
    files: dict[str, bytes | str] = {"genai_config.json": json.dumps(config, indent=2) + "\n"}
    adapted, _ = adapt_tokenizer(_tokenizer_json(source), str(source.path))
    if adapted is not None:
        files["tokenizer.json"] = json.dumps(adapted, ensure_ascii=False) + "\n"
    return files


def notes(source: ModelSource, options: OnnxOptions) -> tuple[str, ...]:
    """What a user of onnxruntime-genai should know of this tokenizer, one sentence each.

    Raises:
        CheckpointError, ConfigError, ExportError: as `extra_files`.
    """
    found = list(adapt_tokenizer(_tokenizer_json(source), str(source.path))[1])
    if open_tokenizer(source.path).special.prefix_ids:
        found.append(
            "onnxruntime-genai puts the begin token before a text only after "
            'tokenizer.update_options(add_special_tokens="true")'
        )
    return tuple(found)


def genai_config(source: ModelSource, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of genai_config.json: greedy search, as `bcquant generate` does by default."""
    cfg = source.config
    ends = list(tokenizer.eos_ids or cfg.eos_ids)
    begin = tokenizer.bos_id if tokenizer.bos_id is not None else cfg.bos_id
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else cfg.pad_id
    # A model without one is padded with an end token: genai masks padding out by place, not by id.
    pad = pad if pad is not None else (ends[0] if ends else 0)
    model: dict[str, Any] = {
        "type": "llama",
        "bos_token_id": begin,
        "eos_token_id": ends,
        "pad_token_id": pad,
        "context_length": cfg.max_positions,
        "vocab_size": cfg.vocab_size,
        "decoder": {
            "filename": "model.onnx",
            "head_size": cfg.head_dim,
            "hidden_size": cfg.hidden_size,
            "num_attention_heads": cfg.num_heads,
            "num_hidden_layers": cfg.num_layers,
            "num_key_value_heads": cfg.num_kv_heads,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        },
    }
    if begin is None:
        del model["bos_token_id"]
    search = {
        "do_sample": False,
        "max_length": cfg.max_positions,
        "min_length": 0,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def _tokenizer_json(source: ModelSource) -> dict[str, Any]:
    """The tokenizer.json that an export of this source carries."""
    with tempfile.TemporaryDirectory() as folder:
        export_tokenizer(source.path, folder)
        content: dict[str, Any] = json.loads((Path(folder) / "tokenizer.json").read_bytes())
    return content
