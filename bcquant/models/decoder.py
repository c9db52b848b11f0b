"""The decoder: stages of a block, whole blocks, and a whole model resident in memory.

The calibration stream runs the stage functions one by one to see every Linear's input;
`block_forward` chains the same functions. There is one implementation of the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, block_tensors
from bcquant.models.attention import AttnContext, Cache, attend, make_context
from bcquant.models.norm import rms_norm
from bcquant.spec.model_config import ModelConfig

if TYPE_CHECKING:
    from bcquant.models.source import ModelSource

BlockWeights = Mapping[str, torch.Tensor]

_CONVERT_BYTES = 64 << 20  # float32 bytes converted at a time


class Linear(Protocol):
    """x @ weight.T + bias of the module with this short name; replace it to run packed weights."""

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        name: str,
    ) -> torch.Tensor:
        """Output features of `x`, shape (..., N); `weight` is None if there is no float one."""
        ...


def plain_linear(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
) -> torch.Tensor:
    """`Linear` over resident float weights.

    Raises:
        KeyError: the block has no weight of that name.
    """
    if weight is None:
        raise KeyError(f"{name}.weight")
    return F.linear(x, weight, bias)


def attn_input(cfg: ModelConfig, w: BlockWeights, h: torch.Tensor) -> torch.Tensor:
    """Input of q_proj, k_proj and v_proj: the first norm of the residual stream (B, T, C)."""
    return rms_norm(h, w["input_layernorm.weight"], cfg.rms_norm_eps)


def mlp_input(cfg: ModelConfig, w: BlockWeights, h: torch.Tensor) -> torch.Tensor:
    """Input of gate_proj and up_proj: the second norm of the residual stream (B, T, C)."""
    return rms_norm(h, w["post_attention_layernorm.weight"], cfg.rms_norm_eps)


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Input of down_proj: silu(gate) * up."""
    return F.silu(gate) * up


def block_forward(
    cfg: ModelConfig,
    layer: int,
    w: BlockWeights,
    h_BTC: torch.Tensor,
    ctx: AttnContext,
    cache: Cache | None = None,
    linear: Linear = plain_linear,
) -> torch.Tensor:
    """One block: attention and MLP, each added to the residual stream.

    Args:
        w: the block's tensors by short name ("self_attn.q_proj.weight", ...).
        h_BTC: residual stream, shape (B, T, hidden); not written to.
        ctx: from `make_context`, for these T queries.
        cache: keys and values before these; None = these T are the whole sequence.
        linear: computes every Linear of the block.
    Returns:
        residual stream after the block, shape (B, T, hidden).
    """

    def apply(short: str, x: torch.Tensor) -> torch.Tensor:
        return linear(x, w.get(f"{short}.weight"), w.get(f"{short}.bias"), short)

    x = attn_input(cfg, w, h_BTC)
    q, k, v = (apply(f"self_attn.{p}_proj", x) for p in "qkv")
    h = h_BTC + apply("self_attn.o_proj", attend(cfg, layer, w, q, k, v, ctx, cache))
    x = mlp_input(cfg, w, h)
    u = gated(apply("mlp.gate_proj", x), apply("mlp.up_proj", x))
    return h + apply("mlp.down_proj", u)


def load_tensor(source: ModelSource, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A canonical tensor as torch, dequantized where it is quantized.

    For other types than float32 it is converted a few rows at a time, so that its float32 form is
    never whole in memory.

    Raises:
        CheckpointError: it cannot be read.
    """
    if dtype == torch.float32:
        return torch.from_numpy(source.weight(name))
    shape = source.shape(name)
    out = torch.empty(shape, dtype=dtype)
    step = max(1, _CONVERT_BYTES // (4 * math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        out[first:last] = torch.from_numpy(source.weight(name, (first, last)))
    return out


def load_block(
    source: ModelSource, layer: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """All tensors of one block by short name."""
    prefix = f"model.layers.{layer}."
    shorts = [short for short, _ in block_tensors(source.config)]
    return {short: load_tensor(source, prefix + short, dtype) for short in shorts}


class Decoder:
    """A whole model resident in memory.

    Attributes:
        config: shape and arithmetic.
        embedding: shape (vocab, hidden).
        blocks: per layer, tensors by short name.
        norm: shape (hidden,).
        head: shape (vocab, hidden); the embedding itself where they are tied.
        linear: computes every Linear of the blocks; replaceable.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: torch.Tensor,
        blocks: list[dict[str, torch.Tensor]],
        norm: torch.Tensor,
        head: torch.Tensor,
        linear: Linear = plain_linear,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.blocks = blocks
        self.norm = norm
        self.head = head
        self.linear = linear

    @classmethod
    def load(cls, source: ModelSource, dtype: torch.dtype = torch.float32) -> Decoder:
        """Read every tensor of a model.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        cfg = source.config
        embedding = load_tensor(source, EMBEDDING, dtype)
        blocks = [load_block(source, layer, dtype) for layer in range(cfg.num_layers)]
        norm = load_tensor(source, FINAL_NORM, dtype)
        head = embedding if cfg.tie_embeddings else load_tensor(source, HEAD, dtype)
        return cls(cfg, embedding, blocks, norm, head)

    @torch.inference_mode()
    def forward(
        self,
        ids_BT: torch.Tensor,
        pad_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        last_only: bool = False,
    ) -> torch.Tensor:
        """Next-token logits.

        Args:
            ids_BT: token ids, shape (B, T); with a cache, the tokens after those in it.
            pad_mask: bool or 0/1, True where `ids_BT` is a token, shape (B, T); None = all are.
                Padding may stand on either side; its own logits mean nothing.
            cache: keys and values of earlier calls; grows by T.
            last_only: only the logits of each sequence's last token.
        Returns:
            logits_BTV, or (B, 1, V) with last_only, in the model's dtype.
        Raises:
            ConfigError: the cache has no room for T more tokens.
        """
        h = self.final_hidden(ids_BT, pad_mask, cache)
        if last_only:
            h = _last_tokens(h, pad_mask)
        return F.linear(h, self.head)

    __call__ = forward

    @torch.inference_mode()
    def final_hidden(
        self,
        ids_BT: torch.Tensor,
        pad_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """The input of the head, shape (B, T, hidden): for callers that take logits in pieces."""
        valid = None if pad_mask is None or bool(pad_mask.all()) else pad_mask.bool()
        num_tokens = ids_BT.shape[1]
        if cache is not None:
            positions, valid = cache.extend(num_tokens, valid)
            num_keys = cache.num_slots
        elif valid is not None:
            positions, num_keys = (valid.long().cumsum(-1) - 1).clamp_min(0), num_tokens
        else:
            positions = torch.arange(num_tokens, device=ids_BT.device).unsqueeze(0)
            num_keys = num_tokens
        ctx = make_context(self.config, positions, num_keys, valid)
        h = F.embedding(ids_BT, self.embedding)
        for layer, w in enumerate(self.blocks):
            h = block_forward(self.config, layer, w, h, ctx, cache, self.linear)
        return rms_norm(h, self.norm, self.config.rms_norm_eps)


def _last_tokens(h_BTC: torch.Tensor, pad_mask: torch.Tensor | None) -> torch.Tensor:
    """The state of each sequence's last token, shape (B, 1, C)."""
    if pad_mask is None:
        return h_BTC[:, -1:]
    slots = torch.arange(h_BTC.shape[1], device=h_BTC.device)
    last_B = (slots * pad_mask.bool()).argmax(-1)
    return h_BTC[torch.arange(h_BTC.shape[0], device=h_BTC.device), last_B].unsqueeze(1)
