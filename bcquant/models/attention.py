"""Attention of one block: what a query may see, and the weighted sum itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from bcquant.models.alibi import alibi_bias
from bcquant.models.norm import rms_norm
from bcquant.models.rope import apply_rope, rope_table
from bcquant.spec.model_config import ModelConfig


class Cache(Protocol):
    """What the decoder needs of a key/value cache; bcquant.runtime.kv_cache.KvCache is one."""

    num_slots: int

    def extend(
        self, num_tokens: int, is_token_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take slots for new tokens; return their positions and the mask of all slots."""
        ...

    def append(
        self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new keys and values; return all of the layer's so far."""
        ...


@dataclass(frozen=True)
class AttnContext:
    """What all blocks of one forward pass share.

    Attributes:
        cos, sin: rotary tables, float32, shape (B, T, D); None with ALiBi.
        mask: for layers with full attention; None = plain causal over the queries alone, else
            bool (True = may look), shape (B or 1, 1, T, S), or with ALiBi float32 added to the
            scores, shape (B or 1, H, T, S).
        window_masks: the same for each window size that bites, by size in tokens.
        is_causal: what None in `mask` means: True = causal, False = a single query sees all keys.
    """

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    mask: torch.Tensor | None
    window_masks: Mapping[int, torch.Tensor] = field(default_factory=dict)
    is_causal: bool = True

    def mask_for(self, window: int | None) -> torch.Tensor | None:
        """The mask of a layer with this sliding window."""
        return self.mask if window is None else self.window_masks.get(window, self.mask)


def make_context(
    cfg: ModelConfig,
    positions_BT: torch.Tensor,
    num_keys: int,
    pad_mask_BS: torch.Tensor | None = None,
) -> AttnContext:
    """Rotary tables and masks for T queries that are the last T of `num_keys` keys.

    Args:
        positions_BT: position of each query within its own sequence, shape (B, T) or (1, T).
        num_keys: S >= T; key slot S - T + t is query t itself.
        pad_mask_BS: bool, True where a key slot holds a token, shape (B, S); None = all do.
            A padded query looks at itself, so that its (unused) output stays finite.
    """
    num_queries = positions_BT.shape[-1]
    is_rope = cfg.position == "rope"
    cos, sin = rope_table(cfg, positions_BT) if is_rope else (None, None)
    window_sizes = {w for w in cfg.windows if w is not None and w < num_keys}
    is_plain = pad_mask_BS is None and (num_queries in (1, num_keys))
    if is_rope and is_plain and not window_sizes:
        return AttnContext(cos, sin, None, {}, is_causal=num_queries > 1)

    keys_BS = _key_positions(positions_BT, num_keys, pad_mask_BS)
    full = _causal(num_queries, num_keys, positions_BT.device)
    own = torch.diag_embed(
        torch.ones(num_queries, dtype=torch.bool, device=full.device), num_keys - num_queries
    )[:num_queries]
    if pad_mask_BS is not None:
        full = (full & pad_mask_BS[:, None, None, :]) | own
    distance_B1TS = (positions_BT.unsqueeze(-1) - keys_BS.unsqueeze(-2)).unsqueeze(1)
    window_masks = {w: (full & (distance_B1TS < w)) | own for w in window_sizes}
    if is_rope:
        mask = None if is_plain else full
        return AttnContext(cos, sin, mask, window_masks, is_causal=num_queries > 1)
    bias = alibi_bias(cfg.num_heads, positions_BT, keys_BS)
    hidden = torch.tensor(float("-inf"), device=bias.device)
    return AttnContext(
        None,
        None,
        torch.where(full, bias, hidden),
        {w: torch.where(m, bias, hidden) for w, m in window_masks.items()},
    )


def _key_positions(
    positions_BT: torch.Tensor, num_keys: int, pad_mask_BS: torch.Tensor | None
) -> torch.Tensor:
    """Position of every key slot in its own sequence, shape (B or 1, S); padding repeats one."""
    if pad_mask_BS is not None:
        return (pad_mask_BS.long().cumsum(-1) - 1).clamp_min(0)
    slots = torch.arange(num_keys, device=positions_BT.device)
    return slots + (positions_BT[:, -1:] - (num_keys - 1))


def _causal(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """bool, shape (1, 1, T, S): True where a key is not after the query."""
    ones = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def attend(
    cfg: ModelConfig,
    layer: int,
    w: Mapping[str, torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ctx: AttnContext,
    cache: Cache | None = None,
) -> torch.Tensor:
    """Per-head norm (Qwen3), rotary turn, cache, and softmax(q k / sqrt(D) + mask) v.

    Args:
        w: the block's weights; only self_attn.{q,k}_norm.weight are read, where cfg.qk_norm.
        q: shape (B, T, H*D); k, v: shape (B, T, Hkv*D): outputs of the projections.
    Returns:
        shape (B, T, H*D), the input of o_proj.
    """
    q = _heads(q, cfg.num_heads, cfg.head_dim)
    k = _heads(k, cfg.num_kv_heads, cfg.head_dim)
    v = _heads(v, cfg.num_kv_heads, cfg.head_dim)
    if cfg.qk_norm:
        q = rms_norm(q, w["self_attn.q_norm.weight"], cfg.rms_norm_eps)
        k = rms_norm(k, w["self_attn.k_norm.weight"], cfg.rms_norm_eps)
    if ctx.cos is not None and ctx.sin is not None:
        q = apply_rope(q, ctx.cos, ctx.sin)
        k = apply_rope(k, ctx.cos, ctx.sin)
    if cache is not None:
        k, v = cache.append(layer, k, v)
    mask = ctx.mask_for(cfg.windows[layer])
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and ctx.is_causal,
        enable_gqa=cfg.num_kv_heads != cfg.num_heads,
    )
    return out.transpose(1, 2).flatten(2)


def _heads(x_BTC: torch.Tensor, num_heads: int, head_dim: int) -> torch.Tensor:
    return x_BTC.reshape(*x_BTC.shape[:2], num_heads, head_dim).transpose(1, 2)
