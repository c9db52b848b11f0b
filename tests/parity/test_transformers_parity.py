"""Logits of every family against transformers' own classes, through files that it wrote.

Each model is built by transformers from a 2-layer config, given random parameters everywhere
(norms and biases too, which its own initialisation leaves at one and zero), saved with
save_pretrained and read by our reader.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.runtime.kv_cache import KvCache

pytestmark = pytest.mark.judge
transformers = pytest.importorskip("transformers", reason="transformers is the judge")

# float32 and 2 layers: both sides sum the same products in another order, over 64 .. 96 terms of
# size 1. Measured 5e-6 to 8e-6 on logits of standard deviation 1.5.
ATOL = 1e-4

SIZE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama1": ("Llama", {}),
    "llama2_gqa": ("Llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE}),
    "llama_linear": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "smollm2": (
        "Llama",
        {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen2_window": (
        "Qwen2",
        {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "attention_bias": True}),
    "qwen3_tied": ("Qwen3", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "mistral_window": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 6}),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(transformers' model, our decoder) of one case, ours read from the files of the first."""
    stem, over = CASES[request.param]
    config = getattr(transformers, f"{stem}Config")(**{**SIZE, **over})
    torch.manual_seed(len(request.param))
    judge = getattr(transformers, f"{stem}ForCausalLM")(config).eval().float()
    with torch.no_grad():
        for name, parameter in judge.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
            else:
                parameter.normal_(0.0, 1.5 / parameter.shape[1] ** 0.5)
    folder = tmp_path_factory.mktemp(request.param)
    judge.save_pretrained(folder)
    with open_model(folder) as source:
        return judge, Decoder.load(source)


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(3))


def judged(judge: Any, tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = judge(input_ids=tokens, use_cache=False, **arguments).logits
    return logits


def test_full_sequence_logits_agree(pair: Any) -> None:
    judge, ours = pair
    tokens = ids(2, 40)  # longer than every window and than the trained length of llama3's case
    expected = judged(judge, tokens)
    assert expected.std() > 0.5  # a model whose logits are all alike would agree by chance
    torch.testing.assert_close(ours(tokens), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_logits_agree(pair: Any, side: str) -> None:
    judge, ours = pair
    tokens, mask = ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    for row, pads in enumerate((0, 4, 11)):
        if pads:
            mask[row, slice(0, pads) if side == "left" else slice(-pads, None)] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    expected = judged(judge, tokens, attention_mask=mask, position_ids=positions)
    real = mask.bool()
    torch.testing.assert_close(ours(tokens, mask)[real], expected[real], atol=ATOL, rtol=0)


def test_cached_decode_agrees_with_the_judges_full_pass(pair: Any) -> None:
    judge, ours = pair
    tokens = ids(2, 24)
    expected = judged(judge, tokens)
    cache = KvCache(ours.config, batch=2, max_tokens=24)
    pieces = [ours(tokens[:, :10], cache=cache), ours(tokens[:, 10:13], cache=cache)]
    pieces += [ours(tokens[:, i : i + 1], cache=cache) for i in range(13, 24)]
    torch.testing.assert_close(torch.cat(pieces, 1), expected, atol=ATOL, rtol=0)
