"""The `std` variant: operators of ai.onnx alone, for runtimes that know no others.

Attention, RMSNormalization and RotaryEmbedding are those of opset 23. A quantized matrix is a
constant of 4 or 8 bits, DequantizeLinear and MatMul. ONNX Runtime fuses the pair into MatMulNBits
when it loads the file; its accuracy level is then the session option
`session.qdq_matmulnbits_accuracy_level`, 4 (int8 activations) unless set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bcquant.models.alibi import alibi_slopes
from bcquant.models.rope_tables import rope_tables
from bcquant.models.source import ModelSource
from bcquant.quant.onnx_blocks import Blockwise, block_size_of, container_bits, to_blockwise_dq
from bcquant.spec.quant_format import QuantFormat

from .emitter import Emitter, Qkv
from .graph import ELEMENT_TYPES, Array, Graph, Weight
from .options import OnnxOptions


class StdEmitter(Emitter):
    """Decoder operations in ai.onnx, opset 23."""

    opset = 23
    uses_contrib = False

    def __init__(self, graph: Graph, source: ModelSource, options: OnnxOptions) -> None:
        super().__init__(graph, source, options)
        self._kind = np.float16 if self.dtype == "F16" else np.float32
        self._last: tuple[str, Blockwise] | None = None

    def stored_as(self, module: str) -> str:
        """ "INT4, blocks of 64", or W8A8's MatMulInteger."""
        fmt = self.source.format_of(module)
        assert fmt is not None, f"{module} is not quantized"
        if fmt.activation == "int8_token":
            return "MatMulInteger 8-bit, int8 activations"
        stored = _Stored.of(fmt, *self.source.shape(f"{module}.weight"))
        kind = f"{'INT' if stored.is_signed else 'UINT'}{stored.bits}"
        inside = "" if stored.bits == fmt.bits else f" for {fmt.bits}-bit codes"
        blocks = f"blocks of {stored.block_size}" if stored.block_size else "one scale a row"
        return f"{kind}{inside}, {blocks}"

    def begin(self) -> None:
        """Positions of the tokens and one mask for each window size.

        Attention's own causal mask is not used: with a cache its frontier was changed by errata,
        and padding and windows need a mask anyway.
        """
        g = self.graph
        total = g.node("Shape", ("attention_mask",), "mask/total", start=1, end=2)
        count = g.node("Shape", ("input_ids",), "mask/count", start=1, end=2)
        self._bounds = (g.node("Sub", (total, count), "mask/past"), total)
        self._positions = self._token_positions()
        self._query_positions = self._of_queries(self._positions, 1, "mask/query_positions")
        self._masks = self._make_masks()

    def norm(self, x: str, weight: str, out: str, eps: float | None = None) -> str:
        """RMSNorm over the last axis with a canonical weight name; `out` names the result."""
        epsilon = self.config.rms_norm_eps if eps is None else eps
        inputs = (x, self.row(weight))
        return self.graph.node("RMSNormalization", inputs, out, axis=-1, epsilon=epsilon)

    def add_norm(self, x: str, residual: str, weight: str, total: str) -> str:
        """total = residual + x, named so; returns RMSNorm(total)."""
        self.graph.node("Add", (residual, x), total)
        return self.norm(total, weight, f"{total}/normed")

    def gated(self, gate: str, up: str, out: str) -> str:
        """SiLU(gate) * up. Swish, SiLU in one node, would need opset 24."""
        g = self.graph
        slope = g.node("Sigmoid", (gate,), f"{out}/sigmoid")
        silu = g.node("Mul", (gate, slope), f"{out}/silu")
        return g.node("Mul", (silu, up), out)

    def attention(self, layer: int, qkv: Qkv, out: str) -> str:
        """Rotary or ALiBi attention with the layer's cache, which becomes `present.<layer>.*`."""
        cfg, query, key = self.config, qkv.query, qkv.key
        if cfg.position == "rope":
            query = self._rotated(query, cfg.num_heads)
            key = self._rotated(key, cfg.num_kv_heads)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        inputs = (query, key, qkv.value, self._masks[cfg.windows[layer]], *past)
        self.graph.nodes_out(
            "Attention", inputs, (out, *present),
            q_num_heads=cfg.num_heads, kv_num_heads=cfg.num_kv_heads,
        )  # fmt: skip
        return out

    def quantized_linear(self, module: str, x: str, out: str) -> str:
        """x W^T of a quantized module, without its bias."""
        fmt = self.source.format_of(module)
        assert fmt is not None, f"{module} is not quantized"
        if fmt.activation == "int8_token":
            return self.int8_linear(module, x, out)
        return self.graph.node("MatMul", (x, self._dequantized(module, fmt)), out)

    def _token_positions(self) -> str:
        """Position of every slot in its own sequence, [batch, total]; padding repeats one."""
        g = self.graph
        counts = g.node("CumSum", ("attention_mask", self._whole(1)), "mask/counts")
        before = g.node("Sub", (counts, self._whole(1)), "mask/before")
        return g.node("Max", (before, self._whole(0)), "mask/positions")

    def _of_queries(self, slots: str, axis: int, out: str) -> str:
        """The part of all slots that is this call's tokens: the last ones."""
        axes = self.graph.constant(f"axes/{axis}", [axis], "int64")
        return self.graph.node("Slice", (slots, *self._bounds, axes), out)

    def _make_masks(self) -> dict[int | None, str]:
        """What Attention hides from a query, or adds to its scores, by window size.

        With rotary positions bool [batch, 1, sequence, total], True = may look; with ALiBi floats
        [batch, heads, sequence, total]. A query of padding looks at itself, so that its (unused)
        output stays finite.
        """
        g, windows = self.graph, dict.fromkeys(self.config.windows)
        limit = g.node("Squeeze", (self._bounds[1],), "mask/limit")
        slots = g.node("Range", (self._whole(0), limit, self._whole(1)), "mask/slots")
        queries = self._unsqueezed(self._of_queries(slots, 0, "mask/query_slots"), 1)
        own = g.node("Equal", (slots, queries), "mask/own")
        causal = g.node("LessOrEqual", (slots, queries), "mask/causal")
        is_token = g.node("Cast", ("attention_mask",), "mask/is_token", to=ELEMENT_TYPES["BOOL"])
        seen = g.node("And", (causal, self._unsqueezed(is_token, 1, 2)), "mask/seen")
        is_alibi = self.config.position == "alibi"
        offset = self._offset() if is_alibi or any(windows) else ""
        bias = self._alibi(offset) if is_alibi else ""
        return {window: self._mask(window, seen, own, offset, bias) for window in windows}

    def _mask(self, window: int | None, seen: str, own: str, offset: str, bias: str) -> str:
        g, name = self.graph, "mask/full"
        if window is not None:
            name = f"mask/window{window}"
            near = g.node("Greater", (offset, self._whole(-window)), f"{name}/near")
            seen = g.node("And", (seen, near), f"{name}/inside")
        if not bias:
            return g.node("Or", (seen, own), name)
        allowed = g.node("Or", (seen, own), f"{name}/allowed")
        never = g.constant("mask/never", -np.inf, self._kind)
        return g.node("Where", (allowed, bias, never), name)

    def _offset(self) -> str:
        """Position of the key minus that of the query, [batch, 1, sequence, total]."""
        keys = self._unsqueezed(self._positions, 1, 2)
        queries = self._unsqueezed(self._query_positions, 1, 3)
        return self.graph.node("Sub", (keys, queries), "mask/offset")

    def _alibi(self, offset: str) -> str:
        """slope * offset of every head, [batch, heads, sequence, total]."""
        g, heads = self.graph, self.config.num_heads
        slopes = np.array(alibi_slopes(heads), self._kind).reshape(1, heads, 1, 1)
        steps = self._as(self.dtype, offset, "alibi/steps")
        return g.node("Mul", (g.constant("alibi/slopes", slopes), steps), "alibi/bias")

    def _rotated(self, x: str, num_heads: int) -> str:
        """Every head turned by its token's position; the tables are as long as the context."""
        tables = (self._rotary_table(part) for part in ("cos", "sin"))
        inputs = (x, *tables, self._query_positions)
        return self.graph.node("RotaryEmbedding", inputs, f"{x}/rotated", num_heads=num_heads)

    def _rotary_table(self, part: str) -> str:
        cfg, kind = self.config, self._kind

        def parts() -> Iterable[Array]:
            cos, sin = rope_tables(cfg, cfg.max_positions)
            yield (cos if part == "cos" else sin).astype(kind)

        shape = (cfg.max_positions, cfg.head_dim // 2)
        return self.graph.weight(Weight(f"rotary/{part}", self.dtype, shape, parts))

    def _dequantized(self, module: str, fmt: QuantFormat) -> str:
        """Constants of a module and the node that makes floats [K, N] of them.

        Scales are float16 in the file, as in the checkpoint; ONNX Runtime folds the cast. The other
        way, output_dtype of DequantizeLinear, makes it (1.32) refuse the file: its fused node then
        has float16 scales beside float32 activations.
        """
        g, (n, k) = self.graph, self.source.shape(f"{module}.weight")
        stored = _Stored.of(fmt, n, k)

        def weight(part: str, dtype: str, shape: tuple[int, ...]) -> str:
            def values() -> Iterable[Array]:
                array: Array = getattr(self._packed(module), part)
                is_turned = stored.is_signed and part == "codes"
                yield _signed(array, n * k, stored.bits) if is_turned else array

            return g.weight(Weight(f"{module}.{part}", dtype, shape, values))

        inputs = [weight("codes", stored.dtype, (k, n))]
        scales = weight("scales", "F16", stored.grid)
        inputs.append(self._as(self.dtype, scales, f"{scales}/wide", stored="F16"))
        if not stored.is_signed:
            inputs.append(weight("zeros", stored.dtype, stored.grid))
        size = stored.block_size
        blocks: dict[str, Any] = {"axis": 0, "block_size": size} if size else {"axis": 1}
        return g.node("DequantizeLinear", inputs, f"{module}.floats", **blocks)

    def _packed(self, module: str) -> Blockwise:
        """Constants of a module; the last one stays, for its next part."""
        if self._last is None or self._last[0] != module:
            q = self.source.quantized(module)
            assert q is not None, f"{module} is not quantized"
            self._last = (module, to_blockwise_dq(q))
        return self._last[1]

    def _as(self, dtype: str, x: str, out: str, stored: str = "") -> str:
        """`x` in another type; `x` itself if it is `stored` in that one."""
        if stored == dtype:
            return x
        return self.graph.node("Cast", (x,), out, to=ELEMENT_TYPES[dtype])

    def _whole(self, value: int) -> str:
        return self.graph.constant(f"whole/{value}", value, "int64")

    def _unsqueezed(self, x: str, *axes: int) -> str:
        label = "_".join(map(str, axes))
        names = (x, self.graph.constant(f"axes/{label}", axes, "int64"))
        return self.graph.node("Unsqueeze", names, f"{x}/unsqueezed_{label}")


@dataclass(frozen=True)
class _Stored:
    """How `to_blockwise_dq` lays out a weight [K, N], known from its format.

    Attributes:
        bits: of a container, 4 or 8.
        is_signed: codes are stored as code - 2^(bits-1), whose zero is DequantizeLinear's default.
            That takes the zeros out of the file, and some runtimes know symmetric INT4 alone.
        block_size: rows that share a scale; 0 = one scale a column.
        grid: shape of scales and zeros.
    """

    bits: int
    is_signed: bool
    block_size: int
    grid: tuple[int, ...]

    @classmethod
    def of(cls, fmt: QuantFormat, n: int, k: int) -> _Stored:
        bits, size = container_bits(fmt, smallest=4), block_size_of(fmt, k)
        is_signed = fmt.symmetric and bits == fmt.bits
        if k % size and fmt.num_groups(k) == 1:
            return cls(bits, is_signed, 0, (n,))
        return cls(bits, is_signed, size, (-(-k // size), n))

    @property
    def dtype(self) -> str:
        return f"{'I' if self.is_signed else 'U'}{self.bits}"


def _signed(codes: Array, count: int, bits: int) -> Array:
    """Packed codes with 2^(bits-1) taken off each: its top bit turned over, in two's complement."""
    turned = codes ^ np.uint8(0x88 if bits == 4 else 0x80)
    if bits == 4 and count % 2:
        turned[-1] &= np.uint8(15)  # the nibble after the last element stays 0
    return turned
