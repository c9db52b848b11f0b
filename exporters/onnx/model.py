"""The decoder as a graph: one walk for every variant."""

from __future__ import annotations

from bcquant.models.architecture import FINAL_NORM

from .emitter import Emitter, Qkv


def build(emitter: Emitter) -> None:
    """Fill the emitter's graph with the whole model."""
    cfg = emitter.config
    emitter.declare_inputs()
    emitter.begin()
    hidden = emitter.embed("embedding")
    normed = emitter.norm(hidden, _norm_of(0, cfg.num_layers), "layers.0.attention_norm")
    for layer in range(cfg.num_layers):
        name, out = f"model.layers.{layer}", f"layers.{layer}"
        mixed = _attention(emitter, layer, normed)
        middle = f"{out}.middle"
        normed = emitter.add_norm(mixed, hidden, f"{name}.post_attention_layernorm.weight", middle)
        gate = emitter.linear(f"{name}.mlp.gate_proj", normed, f"{out}.gate")
        up = emitter.linear(f"{name}.mlp.up_proj", normed, f"{out}.up")
        gated = emitter.gated(gate, up, f"{out}.gated")
        down = emitter.linear(f"{name}.mlp.down_proj", gated, f"{out}.down")
        hidden = f"hidden.{layer}"
        normed = emitter.add_norm(down, middle, _norm_of(layer + 1, cfg.num_layers), hidden)
    emitter.head(normed)
    emitter.declare_outputs()


def _norm_of(layer: int, num_layers: int) -> str:
    """The norm that reads the residual stream before block `layer`."""
    return FINAL_NORM if layer == num_layers else f"model.layers.{layer}.input_layernorm.weight"


def _attention(emitter: Emitter, layer: int, normed: str) -> str:
    name, out = f"model.layers.{layer}.self_attn", f"layers.{layer}"
    query, key, value = (
        emitter.linear(f"{name}.{part}_proj", normed, f"{out}.{part}") for part in "qkv"
    )
    if emitter.config.qk_norm:
        query = _head_norm(emitter, query, f"{name}.q_norm.weight")
        key = _head_norm(emitter, key, f"{name}.k_norm.weight")
    mixed = emitter.attention(layer, Qkv(query, key, value), f"{out}.attention")
    return emitter.linear(f"{name}.o_proj", mixed, f"{out}.o")


def _head_norm(emitter: Emitter, x: str, weight: str) -> str:
    """RMSNorm over each head: [batch, sequence, heads * D] seen as [batch, sequence, heads, D]."""
    g = emitter.graph
    heads_shape = g.constant("shape/heads", [0, 0, -1, emitter.config.head_dim], "int64")
    flat_shape = g.constant("shape/flat", [0, 0, -1], "int64")
    heads = g.node("Reshape", (x, heads_shape), f"{x}/heads")
    normed = emitter.norm(heads, weight, f"{x}/heads_normed")
    return g.node("Reshape", (normed, flat_shape), f"{x}/normed")
