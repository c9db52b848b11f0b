from __future__ import annotations

from typing import Any

import pytest
import torch
from factory import tiny_config

from bcquant.models.architecture import find_architecture
from bcquant.models.attention import attend, make_context
from bcquant.spec.model_config import ModelConfig


def config(family: str, **over: Any) -> ModelConfig:
    fields = tiny_config(family, **over)
    return find_architecture(fields).parse(fields)


def line(num_tokens: int, first: int = 0) -> torch.Tensor:
    return torch.arange(first, first + num_tokens).unsqueeze(0)


def heads(cfg: ModelConfig, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = (cfg.q_size, cfg.kv_size, cfg.kv_size)
    q, k, v = (torch.randn(1, num_tokens, size, generator=generator) for size in sizes)
    return q, k, v


def test_whole_sequences_need_no_mask() -> None:
    ctx = make_context(config("llama"), line(9), 9)
    assert ctx.mask is None and ctx.is_causal and not ctx.window_masks


def test_one_query_after_a_cache_needs_no_mask() -> None:
    ctx = make_context(config("llama"), line(1, 8), 9)
    assert ctx.mask is None and not ctx.is_causal


def test_later_queries_see_all_earlier_keys() -> None:
    ctx = make_context(config("llama"), line(2, 3), 5)
    assert ctx.mask is not None
    assert ctx.mask[0, 0].tolist() == [[True, True, True, True, False], [True] * 5]


def test_window_counts_the_query_itself() -> None:
    ctx = make_context(config("mistral", sliding_window=3), line(5), 5)
    mask = ctx.mask_for(3)
    assert mask is not None and ctx.mask_for(None) is None
    assert mask[0, 0, 4].tolist() == [False, False, True, True, True]
    assert mask[0, 0, 1].tolist() == [True, True, False, False, False]


def test_window_wider_than_the_keys_needs_no_mask() -> None:
    assert make_context(config("mistral", sliding_window=5), line(5), 5).mask_for(5) is None


def test_window_follows_positions_and_not_slots() -> None:
    pad = torch.tensor([[True, False, False, True, True]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    mask = make_context(config("mistral", sliding_window=2), positions, 5, pad).mask_for(2)
    assert mask is not None
    assert mask[0, 0, 3].tolist() == [True, False, False, True, False]
    assert mask[0, 0, 4].tolist() == [False, False, False, True, True]


def test_padded_queries_stay_finite() -> None:
    cfg = config("llama3")
    pad = torch.tensor([[False, False, True, True]])
    ctx = make_context(cfg, torch.tensor([[0, 0, 0, 1]]), 4, pad)
    assert bool(torch.isfinite(attend(cfg, 0, {}, *heads(cfg, 4), ctx)).all())


@pytest.mark.parametrize("family", ["llama3", "mistral", "baichuan13b"])
def test_attention_is_a_softmax_over_what_may_be_seen(family: str) -> None:
    cfg = config(family)
    q, k, v = heads(cfg, 12)
    ctx = make_context(cfg, line(12), 12)
    got = attend(cfg, 0, {}, q, k, v, ctx)

    def split(x: torch.Tensor, count: int) -> torch.Tensor:
        return x.view(12, count, cfg.head_dim).transpose(0, 1).double()

    q_h, k_h, v_h = split(q, cfg.num_heads), split(k, cfg.num_kv_heads), split(v, cfg.num_kv_heads)
    if ctx.cos is not None and ctx.sin is not None:
        half = cfg.head_dim // 2
        turn = torch.complex(ctx.cos[0, :, :half].double(), ctx.sin[0, :, :half].double())

        def rotate(x: torch.Tensor) -> torch.Tensor:
            y = torch.complex(x[..., :half], x[..., half:]) * turn
            return torch.cat((y.real, y.imag), -1)

        q_h, k_h = rotate(q_h), rotate(k_h)
    window = cfg.windows[0] or 12
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    for head in range(cfg.num_heads):
        shared = head // (cfg.num_heads // cfg.num_kv_heads)
        for i in range(12):
            first = max(0, i - window + 1)
            scores = k_h[shared, first : i + 1] @ q_h[head, i] / cfg.head_dim**0.5
            if cfg.position == "alibi":
                scores = scores + slopes[head] * torch.arange(first, i + 1)
            want = scores.softmax(-1) @ v_h[shared, first : i + 1]
            part = got[0, i, head * cfg.head_dim : (head + 1) * cfg.head_dim].double()
            torch.testing.assert_close(part, want, atol=1e-5, rtol=0)  # float32 against float64
