"""Judge on a trained model: SmolLM2-135M, whose ties and outliers no random model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from judges.harness import judge_logits, judge_tokens, kernels, our_decoder, our_tokens
from tiny_quantized import NEAREST

from bcquant.pipeline.quantize import quantize_model
from bcquant.runtime.tokenizer import open_tokenizer

pytestmark = [
    pytest.mark.judge,
    pytest.mark.slow,
    # Third-party imports announce their own deprecations; the UserWarning says that the folder's
    # settings are kept and only `backend` is taken from what was passed, as this test wants.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config` or equivalent:UserWarning"),
    # gptqmodel leaves a temporary folder to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


def test_greedy_tokens_agree(
    demo_model: Path, gptqmodel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    monkeypatch.setenv("GPTQ_TORCH_CACHE_WEIGHTS", "1")  # else it dequantizes at every token
    folder = quantize_model(demo_model, tmp_path / "q", NEAREST).folder
    wanted = GPTQConfig(bits=4, backend="gptq_torch")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=wanted, dtype=torch.float32
    )
    assert kernels(model) == {"TorchLinear": 210, "Linear": 1}
    prompt = "The capital of France is"
    ids = open_tokenizer(folder).encode(prompt)
    assert AutoTokenizer.from_pretrained(folder)(prompt).input_ids == ids
    tokens = torch.tensor(ids)
    # The kernel holds a weight in float16: one rounding of the exact product.
    decoder = our_decoder(folder, rounded_to=torch.float16)
    # float32 on both sides through 30 layers: measured 1e-4 on 512 tokens.
    expected = decoder(tokens[None])
    torch.testing.assert_close(judge_logits(model, tokens[None]), expected, atol=2e-3, rtol=0)
    assert judge_tokens(model, tokens) == our_tokens(folder, decoder, tokens)
