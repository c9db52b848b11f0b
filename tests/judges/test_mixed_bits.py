"""Judges: other readers load checkpoints whose bits were allocated set by set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judges.conftest import MakeSource
from judges.harness import (
    ATOL_F32,
    CALIB,
    judge_logits,
    judge_tokens,
    kernels,
    our_decoder,
    our_tokens,
    prompts,
    quantize,
)

from bcquant.models.source import open_model
from bcquant.pipeline.allocate import Target, allocate
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import Recipe

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # gptqmodel leaves a temporary folder to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


def mixed(source: Path, out: Path, output: str, symmetric: bool) -> tuple[Path, set[int]]:
    """A folder of 4.4 bits a weight, and which bits it holds."""
    recipe = Recipe(QuantFormat(4, 32, symmetric), calib=CALIB, output=output)
    with open_model(source) as opened:
        found = allocate(opened, recipe, Target(4.4), out)
    folder = quantize(source, out, found.format, output, overrides=found.overrides)
    return folder, {row.bits for row in found.sets}


@pytest.mark.parametrize(
    ("family", "output", "symmetric"),
    [("llama3", "gptq", True), ("qwen2", "gptq_v2", False), ("baichuan", "gptq", True)],
)
def test_gptqmodel_loads_mixed_bits(
    gptqmodel: Any, make_source: MakeSource, tmp_path: Path, family: str, output: str,
    symmetric: bool,
) -> None:  # fmt: skip
    folder, bits = mixed(make_source(family), tmp_path / "q", output, symmetric)
    assert len(bits) > 1
    loaded = gptqmodel.GPTQModel.load(
        str(folder), backend=gptqmodel.BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.float16
    ).model
    assert kernels(loaded) == {"TorchLinear": 14, "Linear": 1}
    assert {m.bits for m in loaded.modules() if type(m).__name__ == "TorchLinear"} == bits
    decoder, ids = our_decoder(folder), prompts(folder)
    # The loaded tensors computed in float32: scales exact, and so every weight.
    logits = judge_logits(loaded.float(), ids)
    torch.testing.assert_close(logits, decoder(ids), atol=ATOL_F32, rtol=0)
    assert judge_tokens(loaded, ids[0]) == our_tokens(folder, decoder, ids[0])


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_compressed_tensors_loads_mixed_bits(
    make_source: MakeSource, tmp_path: Path, family: str
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed_tensors, the judge, is missing")
    from transformers import AutoModelForCausalLM

    folder, bits = mixed(make_source(family), tmp_path / "q", "compressed-tensors", True)
    assert len(bits) > 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    decoder, ids = our_decoder(folder), prompts(folder)
    # Its scales are float32 here, so its products are exact, as ours are.
    torch.testing.assert_close(judge_logits(model, ids), decoder(ids), atol=ATOL_F32, rtol=0)
    assert judge_tokens(model, ids[0]) == our_tokens(folder, decoder, ids[0])
