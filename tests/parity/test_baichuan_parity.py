"""Baichuan against transformers' LLaMA after conversion, and against plain numpy for the rest.

transformers 5 has no Baichuan class. With RoPE, a Baichuan is a LLaMA once W_pack is split, so
transformers judges it. ALiBi and NormHead are judged by the loops below: float64, one query, one
head and one key at a time, from the stored tensors and the published formulas.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factory import make_tiny

from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import write_safetensors
from bcquant.models.decoder import Decoder
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import open_model
from bcquant.runtime.kv_cache import KvCache

Vector = npt.NDArray[np.float64]

# float32 against float32 or float64, 2 layers of 64 terms; measured at most 1.2e-5.
ATOL = 1e-4
IDS = [5, 17, 80, 2, 41, 41, 63, 9, 30, 77, 12, 54]


def our_logits(folder: Path, ids: list[int] = IDS) -> torch.Tensor:
    with open_model(folder) as source:
        return Decoder.load(source)(torch.tensor([ids]))[0]


def convert_to_llama(folder: Path, out: Path) -> Path:
    out.mkdir()
    with open_model(folder) as source:
        tensors = {name: source.raw(name) for name in source.names()}
        write_safetensors(out / "model.safetensors", tensors, {"format": "pt"})
        config = to_hf_config(source.config, "float32")
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.judge
@pytest.mark.parametrize("family", ["baichuan", "baichuan2"])
def test_llama_conversion_gives_transformers_the_same_logits(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    folder = make_tiny(family, tmp_path / "baichuan")
    converted = convert_to_llama(folder, tmp_path / "llama")
    judge: Any = transformers.AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32)
    assert type(judge).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        expected = judge(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(our_logits(folder), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["baichuan", "baichuan13b", "baichuan2", "baichuan2_13b"])
def test_logits_agree_with_the_plain_reference(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path)
    expected = plain_logits(
        folder, IDS, has_alibi="13b" in family, has_norm_head="baichuan2" in family
    )
    assert expected.std() > 0.5
    np.testing.assert_allclose(our_logits(folder).numpy(), expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_alibi_ignores_padding(side: str, tmp_path: Path) -> None:
    folder = make_tiny("baichuan13b", tmp_path)
    with open_model(folder) as source:
        ours = Decoder.load(source)
    tokens, mask = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 12, dtype=torch.bool)
    rows = ([*IDS], IDS[3:10])
    for row, ids in enumerate(rows):
        place = slice(12 - len(ids), 12) if side == "left" else slice(0, len(ids))
        tokens[row, place], mask[row, place] = torch.tensor(ids), True
    logits = ours(tokens, mask)
    for row, ids in enumerate(rows):
        alone = ours(torch.tensor([ids]))[0]
        torch.testing.assert_close(logits[row][mask[row]], alone, atol=ATOL, rtol=0)


def test_alibi_cached_decode_equals_the_full_pass(tmp_path: Path) -> None:
    with open_model(make_tiny("baichuan2_13b", tmp_path)) as source:
        ours = Decoder.load(source)
    tokens = torch.tensor([IDS])
    cache = KvCache(ours.config, batch=1, max_tokens=len(IDS))
    pieces = [ours(tokens[:, :5], cache=cache)]
    pieces += [ours(tokens[:, i : i + 1], cache=cache) for i in range(5, len(IDS))]
    torch.testing.assert_close(torch.cat(pieces, 1), ours(tokens), atol=ATOL, rtol=0)


def plain_logits(folder: Path, ids: list[int], has_alibi: bool, has_norm_head: bool) -> Vector:
    """Every logit of a Baichuan by definition, shape (T, V)."""
    config = json.loads((folder / "config.json").read_text())
    with SafetensorsFile(folder / "model.safetensors") as file:
        t = {name: file.read(name).astype(np.float64) for name in file.tensors}
    eps, heads = config["rms_norm_eps"], config["num_attention_heads"]
    stream = [t["model.embed_tokens.weight"][i] for i in ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        normed = [plain_norm(h, t[p + "input_layernorm.weight"], eps) for h in stream]
        mixed = plain_attention(normed, t[p + "self_attn.W_pack.weight"], heads, has_alibi)
        stream = [
            h + t[p + "self_attn.o_proj.weight"] @ a for h, a in zip(stream, mixed, strict=True)
        ]
        for i, h in enumerate(stream):
            x = plain_norm(h, t[p + "post_attention_layernorm.weight"], eps)
            gate, up = t[p + "mlp.gate_proj.weight"] @ x, t[p + "mlp.up_proj.weight"] @ x
            stream[i] = h + t[p + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    head = t["lm_head.weight"]
    if has_norm_head:
        head = np.stack([row / math.sqrt(sum(x * x for x in row)) for row in head])
    return np.stack([head @ plain_norm(h, t["model.norm.weight"], eps) for h in stream])


def plain_norm(x: Vector, weight: Vector, eps: float) -> Vector:
    return np.asarray(x / math.sqrt(sum(v * v for v in x) / len(x) + eps) * weight)


def plain_attention(xs: list[Vector], w_pack: Vector, heads: int, has_alibi: bool) -> list[Vector]:
    hidden = w_pack.shape[1]
    size = hidden // heads
    out = [np.zeros(hidden) for _ in xs]
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        wq, wk, wv = (w_pack[part * hidden : (part + 1) * hidden][rows] for part in range(3))
        for i, x in enumerate(xs):
            q = wq @ x if has_alibi else plain_rope(wq @ x, i)
            scores = []
            for j in range(i + 1):
                k = wk @ xs[j] if has_alibi else plain_rope(wk @ xs[j], j)
                score = float(q @ k) / math.sqrt(size)
                # Baichuan-13B adds slope * j; a constant per row more or less changes no softmax.
                scores.append(score + (plain_slope(head, heads) * j if has_alibi else 0.0))
            weights = [math.exp(s - max(scores)) for s in scores]
            for j, weight in enumerate(weights):
                out[i][rows] += weight / sum(weights) * (wv @ xs[j])
    return out


def plain_rope(x: Vector, position: int) -> Vector:
    half = len(x) // 2
    out = x.copy()
    for i in range(half):
        angle = position * 10000.0 ** (-i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def plain_slope(head: int, heads: int) -> float:
    """For 6 heads: 4 slopes of 4 heads, then the 1st and the 3rd of 8."""
    assert heads == 6
    return float([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3][head])
