"""What every judge does: quantize a tiny model as a user would, then ask both sides the same.

The models have 2 layers, hidden size 64 and random weights whose logits have a standard deviation
near 4, so that a wrong tensor moves them by several units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bcquant.io.digest import digest_arrays
from bcquant.models.architecture import STAGES
from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.pipeline.quantize import quantize_model
from bcquant.runtime.engine import Engine
from bcquant.runtime.sampler import SamplingOptions
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe

NEW_TOKENS = 16
CALIB = CalibOptions(num_tokens=512, seq_len=32)
# Rows, groups and 3-bit words all come out even: what every reader of every format takes.
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
# Both sides in float32 on the same weights: sums of at most 128 products in another order, through
# 2 layers. Measured up to 2e-5 on logits of standard deviation 4.
ATOL_F32 = 2e-4

LINEARS = tuple(f"{name}.weight" for stage in STAGES for name in stage)


def quantize(
    source: Path, out: Path, fmt: QuantFormat, output: str = "gptq", **recipe: Any
) -> Path:
    """Quantize with the whole pipeline: search, act-order, retargeting, guard.

    Whatever a judge then finds equal to our reading of the folder is what the solver sealed.
    """
    result = quantize_model(source, out, Recipe(fmt, calib=CALIB, output=output, **recipe))
    with open_model(result.folder) as written:
        for row in result.manifest.modules:
            q = written.quantized(row.module)
            assert q is not None, f"{row.module} is not quantized in the folder"
            arrays = {"codes": q.codes_NK, "scales": q.scales_NG, "zeros": q.zeros_NG}
            assert digest_arrays(arrays) == row.digest, f"{row.module} is not what was sealed"
    return result.folder


def our_decoder(folder: Path, rounded_to: torch.dtype | None = None) -> Decoder:
    """Our decoder in float32 on a folder's dequantized weights.

    Args:
        rounded_to: type to which a judge's kernel rounds each dequantized weight.
    """
    with open_model(folder) as source:
        decoder = Decoder.load(source)
        quantizes_head = source.quant is not None and source.quant.lm_head
    if rounded_to is not None:
        for block in decoder.blocks:
            for name in LINEARS:
                block[name] = block[name].to(rounded_to).float()
        if quantizes_head:
            decoder.head = decoder.head.to(rounded_to).float()
    return decoder


def prompts(folder: Path) -> torch.Tensor:
    """Two prompts of 24 ids from text, shape (2, 24): longer than the tiny sliding window."""
    ids = open_tokenizer(folder).encode("A statement comprises expressions; if x is true, " * 4)
    return torch.tensor([ids[:24], ids[7:31]])


def our_tokens(folder: Path, decoder: Decoder, prompt: torch.Tensor) -> list[int]:
    """Greedy tokens through our key/value cache, an end token taken for any other."""
    engine = Engine(decoder, open_tokenizer(folder))
    return list(engine.generate_ids(prompt.tolist(), NEW_TOKENS, SamplingOptions()))


def judge_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids).logits.float()
    return logits


def judge_tokens(model: Any, prompt: torch.Tensor) -> list[int]:
    """Greedy tokens of a transformers model, an end token taken for any other."""
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        ids = model.generate(
            input_ids=prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    tokens: list[int] = ids[0, len(prompt) :].tolist()
    return tokens


def kernels(model: Any) -> dict[str, int]:
    """How many Linear-like modules of each class a model has."""
    counts: dict[str, int] = {}
    for module in model.modules():
        name = type(module).__name__
        if "Linear" in name:
            counts[name] = counts.get(name, 0) + 1
    return counts
