"""What every variant of the ONNX graph does in the same way; a variant fills in the rest.

A variant is one file with a subclass of `Emitter`: norms, attention, SiLU and quantized matrices in
its own operators. `build` (model.py) walks the decoder and calls it.

Values are [batch, sequence, features] throughout. Two names are promises that `bcquant verify`
uses: `hidden.<i>` is the residual stream after block i, and `logits`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from bcquant.models.architecture import EMBEDDING, HEAD
from bcquant.models.source import ModelSource
from bcquant.quant.onnx_blocks import requirements

from .float_weights import float_dtype, float_weight
from .graph import ELEMENT_TYPES, Graph
from .int8_linear import int8_linear
from .options import OnnxOptions

BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence", "past", "total"


class Qkv(NamedTuple):
    """Query, key and value of one layer, [batch, sequence, heads * head_dim]."""

    query: str
    key: str
    value: str


class Emitter(ABC):
    """Writes decoder operations into a graph.

    Attributes:
        graph: what is being filled.
        source: canonical tensors.
        options: flags of the export.
        dtype: of activations, "F32" or "F16".
    """

    opset: int
    uses_contrib: bool  # nodes of com.microsoft

    def __init__(self, graph: Graph, source: ModelSource, options: OnnxOptions) -> None:
        self.graph, self.source, self.options = graph, source, options
        self.config = source.config
        self.dtype = "F16" if options.float16 else "F32"

    @classmethod
    def refusals(cls, source: ModelSource, options: OnnxOptions) -> list[str]:
        """Why this variant cannot hold the model, one sentence each; asked before it is built."""
        first: dict[str, str] = {}  # reason -> the first module that it is about
        for name in source.names():
            module = name.removesuffix(".weight")
            fmt = source.format_of(module) if source.stored_dtype(name) == "quantized" else None
            for reason in requirements(fmt, source.shape(name)[1]) if fmt else ():
                first.setdefault(reason, module)
        return [f"{module}: {reason}" for reason, module in first.items()]

    def stored_as(self, module: str) -> str:
        """How a quantized module is stored, for the plan: "MatMulNBits 4-bit, blocks of 64"."""
        fmt = self.source.format_of(module)
        assert fmt is not None, module
        return f"{fmt.bits}-bit integers"

    @abstractmethod
    def begin(self) -> None:
        """What comes before the first layer: masks, positions, rotary tables."""

    @abstractmethod
    def norm(self, x: str, weight: str, out: str, eps: float | None = None) -> str:
        """RMSNorm over the last axis with a canonical weight name; `out` names the result."""

    @abstractmethod
    def add_norm(self, x: str, residual: str, weight: str, total: str) -> str:
        """total = residual + x, named so; returns RMSNorm(total)."""

    @abstractmethod
    def quantized_linear(self, module: str, x: str, out: str) -> str:
        """x W^T of a quantized module, without its bias."""

    @abstractmethod
    def attention(self, layer: int, qkv: Qkv, out: str) -> str:
        """Rotary or ALiBi attention with the layer's cache, which becomes `present.<layer>.*`."""

    @abstractmethod
    def gated(self, gate: str, up: str, out: str) -> str:
        """SiLU(gate) * up."""

    def declare_inputs(self) -> None:
        """input_ids, attention_mask and the caches, as onnxruntime-genai names them.

        Caches are [batch, kv_heads, past, head_dim]. attention_mask is [batch, total] with 1 for
        what is attended to: of the past, then of this call's tokens.
        """
        g, cfg = self.graph, self.config
        g.input("input_ids", "I64", (BATCH, SEQUENCE))
        g.input("attention_mask", "I64", (BATCH, TOTAL))
        for layer in range(cfg.num_layers):
            for part in ("key", "value"):
                shape = (BATCH, cfg.num_kv_heads, PAST, cfg.head_dim)
                g.input(f"past_key_values.{layer}.{part}", self.dtype, shape)

    def declare_outputs(self) -> None:
        """logits [batch, sequence, vocab] and the caches with this call's tokens appended."""
        g, cfg = self.graph, self.config
        g.output("logits", self.dtype, (BATCH, SEQUENCE, cfg.vocab_size))
        for layer in range(cfg.num_layers):
            for part in ("key", "value"):
                shape = (BATCH, cfg.num_kv_heads, TOTAL, cfg.head_dim)
                g.output(f"present.{layer}.{part}", self.dtype, shape)

    def embed(self, out: str) -> str:
        """Rows of the embedding."""
        table = self.float_matrix(EMBEDDING)
        rows = self.graph.node("Gather", (table, "input_ids"), f"{out}/rows", axis=0)
        return self.cast(rows, EMBEDDING, out)

    def linear(self, module: str, x: str, out: str) -> str:
        """x W^T + b of any module."""
        has_bias = self.source.has(f"{module}.bias")
        product = f"{out}/product" if has_bias else out
        if self.source.format_of(module) is None:
            result = self.float_linear(f"{module}.weight", x, product)
        else:
            result = self.quantized_linear(module, x, product)
        if has_bias:
            bias = self.row(f"{module}.bias")
            result = self.graph.node("Add", (result, bias), out)
        return result

    def float_linear(self, name: str, x: str, out: str) -> str:
        """x W^T of a matrix stored as floats [N, K]; ONNX Runtime folds the transpose at load."""
        g = self.graph
        weight = self.cast(self.float_matrix(name), name, f"{name}/as_activations")
        turned = g.node("Transpose", (weight,), f"{name}/transposed", perm=[1, 0])
        return g.node("MatMul", (x, turned), out)

    def head(self, x: str) -> None:
        """The output layer; a tied one multiplies by the embedding."""
        if self.config.tie_embeddings:
            self.float_linear(EMBEDDING, x, "logits")
        else:
            self.linear(HEAD.removesuffix(".weight"), x, "logits")

    def int8_linear(self, module: str, x: str, out: str) -> str:
        """x W^T of a W8A8 module, activations rounded to int8 per token."""
        return int8_linear(self.graph, self.source, module, x, out, self.dtype)

    def row(self, name: str) -> str:
        """A norm weight or a bias in the type of activations."""
        return self.graph.weight(float_weight(self.source, name, self.dtype))

    def float_matrix(self, name: str) -> str:
        """A matrix in the type that `float_dtype` gives it."""
        dtype = float_dtype(self.source, name, self.options)
        return self.graph.weight(float_weight(self.source, name, dtype))

    def cast(self, value: str, name: str, out: str) -> str:
        """A float matrix, or rows of it, in the type of activations; itself if it is of that."""
        if float_dtype(self.source, name, self.options) == self.dtype:
            return value
        return self.graph.node("Cast", (value,), out, to=ELEMENT_TYPES[self.dtype])
