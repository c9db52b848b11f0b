"""What can be said about a checkpoint from its headers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from bcquant.loaders._tensor_rows import Linear, TensorRow, is_packed
from bcquant.quant.quant_configs import QuantSpec
from bcquant.spec.model_config import ModelConfig
from bcquant.spec.quant_format import QuantFormat

METHOD_NAMES = {"gptq": "GPTQ", "awq": "AWQ"}


@dataclass(frozen=True)
class Facts:
    """What a checkpoint is.

    Attributes:
        kind: "safetensors", "torch_bin" or "gguf".
        architecture: class name of config.json, or general.architecture of a GGUF; "" if unsaid.
        family: key of bcquant's table, None where there is none.
        quant: how it is quantized, None for float checkpoints and GGUF.
        in_main_config: config.json itself says how it is quantized.
        linears: the quantized weights, without repetition.
        config: of the model, None where bcquant has no family for it or cannot read it.
        tokenizer: which tokenizer lies beside or in it, in words; "" if none.
        file_bytes: size of the weight files.
        problem: why bcquant cannot use the model, None when it can.
    """

    path: Path
    kind: str
    architecture: str
    family: str | None
    quant: QuantSpec | None
    in_main_config: bool
    rows: tuple[TensorRow, ...]
    linears: tuple[Linear, ...]
    config: ModelConfig | None
    tokenizer: str
    file_bytes: int
    problem: str | None

    @property
    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """(N, K) of the quantized weights, without repetition."""
        return tuple(dict.fromkeys((linear.n, linear.k) for linear in self.linears))

    @property
    def num_weights(self) -> int:
        """Numbers of the model."""
        return sum(row.num_weights for row in self.rows)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of all tensors over all numbers of the model; None where a part is unreadable."""
        unknown = any(is_packed(r.name, r.dtype) and not r.num_weights for r in self.rows)
        total = self.num_weights
        return None if unknown or not total else 8 * sum(r.num_bytes for r in self.rows) / total

    @property
    def format_name(self) -> str:
        """The format in words, e.g. "GPTQ v1, 4-bit, group 64, symmetric"."""
        if self.kind == "gguf":
            return "GGUF, " + _gguf_types(self.rows)
        files = "safetensors" if self.kind == "safetensors" else "pytorch_model.bin"
        if self.quant is None:
            return f"float weights in {files}"
        spec = self.quant
        name = f"{METHOD_NAMES.get(spec.method, spec.method)} {spec.version}"
        mixed = ", mixed" if any(o.format is not None for o in spec.dynamic) else ""
        return f"{name}, {describe_format(spec.format)}{mixed}, in {files}"


def describe_format(fmt: QuantFormat) -> str:
    """A format in words, e.g. "4-bit, group 64, symmetric"."""
    group = "one scale per row" if fmt.group_size == -1 else f"group {fmt.group_size}"
    symmetry = "symmetric" if fmt.symmetric else "asymmetric"
    tail = ", int8 activations per token" if fmt.activation == "int8_token" else ""
    return f"{fmt.bits}-bit, {group}, {symmetry}{tail}"


def linear_bits_per_weight(facts: Facts) -> float:
    """Stored bits per weight of the quantized modules alone; nan where there is none."""
    packed = [r for r in facts.rows if r.bits_per_weight is not None and is_packed(r.name, r.dtype)]
    weights = sum(row.num_weights for row in packed)
    bits = sum((row.bits_per_weight or 0.0) * row.num_weights for row in packed)
    return bits / weights if weights else math.nan


def _gguf_types(rows: tuple[TensorRow, ...]) -> str:
    """Types by the share of weights that they hold, largest first."""
    held: dict[str, int] = {}
    for row in rows:
        held[row.dtype] = held.get(row.dtype, 0) + row.num_weights
    total = sum(held.values()) or 1
    ordered = sorted(held.items(), key=lambda item: -item[1])
    shares = [(name.removeprefix("GGUF:"), f"{n / total:.1%}") for name, n in ordered]
    return ", ".join(f"{name} {share}" for name, share in shares if share != "0.0%")
