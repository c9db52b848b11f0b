"""The `ort` variant: ONNX Runtime's own operators (com.microsoft), the fastest it has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bcquant.models.alibi import alibi_slopes
from bcquant.models.architecture import EMBEDDING, HEAD
from bcquant.models.rope_tables import rope_tables
from bcquant.models.source import ModelSource

from .emitter import Emitter, Qkv
from .graph import ELEMENT_TYPES, Array, Graph, Weight
from .options import OnnxOptions
from .quantized_weights import NBitsWeights, PackedModules, rounded_format, rounded_weights

MICROSOFT = "com.microsoft"


class OrtEmitter(Emitter):
    """Decoder operations in com.microsoft and ai.onnx, opset 18."""

    opset = 18
    uses_contrib = True

    def __init__(self, graph: Graph, source: ModelSource, options: OnnxOptions) -> None:
        super().__init__(graph, source, options)
        self._modules = PackedModules(source)

    @classmethod
    def refusals(cls, source: ModelSource, options: OnnxOptions) -> list[str]:
        """Also a head size that GroupQueryAttention does not take."""
        reasons = super().refusals(source, options)
        size, hidden = source.config.head_dim, source.config.hidden_size
        if size % 8:
            reasons.append(
                f"head_dim is {size}; GroupQueryAttention needs a multiple of 8, use --variant std"
            )
        if options.embedding_bits != 16 and hidden % 16:
            reasons.append(f"--embedding-bits needs a hidden size that 16 divides; it is {hidden}")
        return reasons

    def stored_as(self, module: str) -> str:
        """ "MatMulNBits 4-bit, blocks of 64", or W8A8's MatMulInteger."""
        fmt = self.source.format_of(module)
        assert fmt is not None, module
        if fmt.activation == "int8_token":
            return "MatMulInteger 8-bit, int8 activations"
        found = self._modules.weights(module, fmt, self.dtype)
        inside = "" if found.bits == fmt.bits else f" for {fmt.bits}-bit codes"
        return f"MatMulNBits {found.bits}-bit{inside}, blocks of {found.block_size}"

    def begin(self) -> None:
        """Lengths of sequences, and rotary tables or ALiBi's bias."""
        g, cfg = self.graph, self.config
        axes = g.constant("axes/1", [1], "int64")
        one = g.constant("whole/1", 1, "int64")
        counts = g.node("ReduceSum", ("attention_mask", axes), "length/each", keepdims=0)
        last = g.node("Sub", (counts, one), "length/last")
        self._last = g.node("Cast", (last,), "length/seqlens_k", to=ELEMENT_TYPES["I32"])
        total = g.node("Shape", ("attention_mask",), "length/shape", start=1, end=2)
        self._total = g.node("Squeeze", (total,), "length/total")
        self._total32 = g.node("Cast", (self._total,), "length/total32", to=ELEMENT_TYPES["I32"])
        self._tables = tuple(self._rotary(i) for i in (0, 1)) if cfg.position == "rope" else ()
        # The rotation inside GroupQueryAttention takes head sizes of 16 n only.
        self._rotates_inside = bool(self._tables) and cfg.head_dim % 16 == 0
        if not self._rotates_inside:
            self._positions = self._query_positions()
        self._bias = self._alibi() if cfg.position == "alibi" else ""

    def norm(self, x: str, weight: str, out: str, eps: float | None = None) -> str:
        """RMSNorm over the last axis with a canonical weight name; `out` names the result."""
        epsilon = self.config.rms_norm_eps if eps is None else eps
        inputs = (x, self.row(weight))
        return self.graph.node("SimplifiedLayerNormalization", inputs, out, epsilon=epsilon)

    def add_norm(self, x: str, residual: str, weight: str, total: str) -> str:
        """total = residual + x, named so; returns RMSNorm(total)."""
        normed, *_ = self.graph.nodes_out(
            "SkipSimplifiedLayerNormalization",
            (x, residual, self.row(weight)),
            (f"{total}/normed", "", "", total),
            MICROSOFT,
            epsilon=self.config.rms_norm_eps,
        )
        return normed

    def quantized_linear(self, module: str, x: str, out: str) -> str:
        """x W^T of a quantized module, without its bias."""
        fmt = self.source.format_of(module)
        assert fmt is not None, module
        if fmt.activation == "int8_token":
            return self.int8_linear(module, x, out)
        return self._matmul_nbits(self._modules.weights(module, fmt, self.dtype), x, out)

    def attention(self, layer: int, qkv: Qkv, out: str) -> str:
        """Rotary or ALiBi attention with the layer's cache, which becomes `present.<layer>.*`."""
        g, cfg = self.graph, self.config
        query, key = qkv.query, qkv.key
        if self._tables and not self._rotates_inside:
            query, key = (self._rotated(query, cfg.num_heads), self._rotated(key, cfg.num_kv_heads))
        tables = self._tables if self._rotates_inside else ("", "")
        past, present = (
            tuple(f"{prefix}.{layer}.{part}" for part in ("key", "value"))
            for prefix in ("past_key_values", "present")
        )
        window = cfg.windows[layer]
        g.nodes_out(
            "GroupQueryAttention",
            (query, key, qkv.value, *past, self._last, self._total32, *tables, "", self._bias),
            (out, *present),
            MICROSOFT,
            num_heads=cfg.num_heads,
            kv_num_heads=cfg.num_kv_heads,
            do_rotary=int(self._rotates_inside),
            rotary_interleaved=0,
            **({} if window is None else {"local_window_size": window}),
        )
        return out

    def gated(self, gate: str, up: str, out: str) -> str:
        """SiLU(gate) * up; ONNX Runtime makes the first two nodes one (QuickGelu, alpha 1)."""
        g = self.graph
        slope = g.node("Sigmoid", (gate,), f"{out}/sigmoid")
        silu = g.node("Mul", (gate, slope), f"{out}/silu")
        return g.node("Mul", (silu, up), out)

    def embed(self, out: str) -> str:
        """Rows of the embedding, dequantized as they are gathered if it is rounded."""
        if self.options.embedding_bits == 16:
            return super().embed(out)
        found = self._rounded(EMBEDDING)
        data, scales = found.weights
        row_bytes = found.k * found.bits // 8
        flat = Weight(f"{data.name}_rows", "U8", (found.n, row_bytes), data.parts)
        if self.config.tie_embeddings:  # the head's B holds the same bytes
            self.graph.weight(data)
            flat = Weight(flat.name, flat.dtype, flat.shape, flat.parts, bytes_of=data.name)
        return self.graph.node(
            "GatherBlockQuantized",
            (self.graph.weight(flat), "input_ids", self.graph.weight(scales)),
            out,
            MICROSOFT,
            bits=found.bits,
            block_size=found.block_size,
            gather_axis=0,
            quantize_axis=1,
        )

    def head(self, x: str) -> None:
        """The output layer; a tied one multiplies by the embedding."""
        name = EMBEDDING if self.config.tie_embeddings else HEAD
        is_float = self.source.format_of(name.removesuffix(".weight")) is None
        if self.options.embedding_bits == 16 or not is_float:
            super().head(x)
        else:
            self._matmul_nbits(self._rounded(name), x, "logits")

    def _rounded(self, name: str) -> NBitsWeights:
        fmt = rounded_format(self.options.embedding_bits, self.source.shape(name)[1])
        return rounded_weights(self.source, name, fmt, self.dtype)

    def _matmul_nbits(self, found: NBitsWeights, x: str, out: str) -> str:
        g = self.graph
        return g.node(
            "MatMulNBits",
            (x, *(g.weight(weight) for weight in found.weights)),
            out,
            MICROSOFT,
            K=found.k,
            N=found.n,
            bits=found.bits,
            block_size=found.block_size,
            accuracy_level=self.options.accuracy_level,
        )

    def _rotary(self, index: int) -> str:
        """Cosines (0) or sines (1) of all positions, beside the weights."""
        cfg, kind = self.config, np.float16 if self.dtype == "F16" else np.float32

        def parts() -> Iterable[Array]:
            yield rope_tables(cfg, cfg.max_positions)[index].astype(kind)

        shape = (cfg.max_positions, cfg.head_dim // 2)
        name = f"rotary/{('cos', 'sin')[index]}"
        return self.graph.weight(Weight(name, self.dtype, shape, parts))

    def _rotated(self, x: str, num_heads: int) -> str:
        inputs = (x, self._positions, *self._tables)
        return self.graph.node(
            "RotaryEmbedding", inputs, f"{x}/rotated", MICROSOFT, num_heads=num_heads
        )

    def _query_positions(self) -> str:
        """Position of each token of this call in its own sequence, [batch, sequence].

        As GroupQueryAttention counts: a first call starts at 0, padding on the right included.
        """
        g = self.graph
        zero, one = (g.constant(f"whole/{i}", i, "int64") for i in (0, 1))
        shape = g.node("Shape", ("input_ids",), "length/ids_shape", start=1, end=2)
        count = g.node("Squeeze", (shape,), "length/count")
        before = g.node("Max", (g.node("Sub", ("length/each", count), "length/rest"), zero),
                        "length/before")  # fmt: skip
        steps = g.node("Range", (zero, count, one), "length/steps")
        axes = g.constant("axes/1", [1], "int64")
        first = g.node("Unsqueeze", (before, axes), "length/first")
        return g.node("Add", (first, steps), "length/positions")

    def _alibi(self) -> str:
        """slope * (key - query) of every head, [batch, heads, sequence, total]."""
        g, heads = self.graph, self.config.num_heads
        zero, one = (g.constant(f"whole/{i}", i, "int64") for i in (0, 1))
        keys = g.node("Range", (zero, self._total, one), "alibi/keys")
        axes = g.constant("axes/1_3", [1, 3], "int64")
        queries = g.node("Unsqueeze", (self._positions, axes), "alibi/queries")
        offset = g.node("Sub", (keys, queries), "alibi/offset")
        steps = g.node("Cast", (offset,), "alibi/steps", to=ELEMENT_TYPES[self.dtype])
        kind = np.float16 if self.dtype == "F16" else np.float32
        slopes = np.array(alibi_slopes(heads), kind).reshape(1, heads, 1, 1)
        return g.node("Mul", (steps, g.constant("alibi/slopes", slopes)), "alibi/bias")
