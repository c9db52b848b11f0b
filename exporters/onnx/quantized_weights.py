"""Weights of MatMulNBits and GatherBlockQuantized nodes, packed when the data file is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bcquant.errors import ExportError, SolverError
from bcquant.models.source import ModelSource
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.onnx_blocks import (
    BLOCK_SIZES,
    NBits,
    block_size_of,
    container_bits,
    has_zero_points,
    to_matmul_nbits,
)
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

from .float_weights import row_ranges, squared
from .graph import Array, Weight


@dataclass(frozen=True)
class NBitsWeights:
    """One MatMulNBits operand: its initializers and its shape.

    Attributes:
        weights: B, scales and, if the format needs them, zero points.
        n, k, bits, block_size: attributes of the node.
    """

    weights: tuple[Weight, ...]
    n: int
    k: int
    bits: int
    block_size: int


class PackedModules:
    """Packs modules of a checkpoint; the last one stays, for its next part."""

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self._last: tuple[str, NBits] | None = None

    def weights(self, module: str, fmt: QuantFormat, scale_dtype: str) -> NBitsWeights:
        """Initializers of a quantized module; nothing is read here.

        Args:
            scale_dtype: "F32" or "F16"; float16 scales are exact in both.
        """
        n, k = self.source.shape(f"{module}.weight")

        def parts(field: str) -> Callable[[], Iterator[Array]]:
            def read() -> Iterator[Array]:
                yield _field(self._packed(module), field, scale_dtype)

            return read

        return _nbits_weights(module, fmt, n, k, scale_dtype, parts)

    def _packed(self, module: str) -> NBits:
        if self._last is None or self._last[0] != module:
            q = self.source.quantized(module)
            assert q is not None, module
            self._last = (module, to_matmul_nbits(q))
        return self._last[1]


def rounded_format(bits: int, k: int) -> QuantFormat:
    """The symmetric grid of a rounded embedding: blocks of at most 32 (4 bits) or 64 (8 bits).

    Raises:
        ExportError: no block divides K.
    """
    for size in (size for size in BLOCK_SIZES if size <= 8 * bits):
        if k % size == 0:
            return QuantFormat(bits, size)
    raise ExportError(f"--embedding-bits needs a hidden size that 16 divides; it is {k}")


def rounded_weights(
    source: ModelSource, name: str, fmt: QuantFormat, scale_dtype: str
) -> NBitsWeights:
    """Initializers of a float matrix rounded to nearest; rows are rounded while written."""
    n, k = source.shape(name)

    def parts(field: str) -> Callable[[], Iterator[Array]]:
        def read() -> Iterator[Array]:
            for rows in row_ranges((n, k)):
                yield _field(to_matmul_nbits(_rounded(source, name, rows, fmt)), field, scale_dtype)

        return read

    return _nbits_weights(name.removesuffix(".weight"), fmt, n, k, scale_dtype, parts)


def rounding_error(source: ModelSource, name: str, fmt: QuantFormat) -> float:
    """|rounded - source| / |source| over the whole tensor.

    Raises:
        ExportError: a value is not finite, or too large for a float16 scale.
    """
    difference = total = 0.0
    for rows in row_ranges(source.shape(name)):
        values = source.weight(name, rows)
        difference += squared(dequantize(_rounded(source, name, rows, fmt)) - values)
        total += squared(values)
    return math.sqrt(difference / total) if total else 0.0


def _rounded(
    source: ModelSource, name: str, rows: tuple[int, int], fmt: QuantFormat
) -> QuantizedTensor:
    try:
        return quantize_nearest(source.weight(name, rows), fmt)
    except SolverError as error:
        raise ExportError(f"{name} cannot be rounded to {fmt.bits} bits: {error}") from error


def _nbits_weights(
    module: str,
    fmt: QuantFormat,
    n: int,
    k: int,
    scale_dtype: str,
    parts: Callable[[str], Callable[[], Iterator[Array]]],
) -> NBitsWeights:
    bits, size = container_bits(fmt), block_size_of(fmt, k)
    blocks = -(-k // size)
    shapes = [("b", "U8", (n, blocks, size * bits // 8)), ("scales", scale_dtype, (n, blocks))]
    if has_zero_points(fmt):
        shapes.append(("zero_points", "U8", (n, -(-blocks * bits // 8))))
    weights = tuple(
        Weight(f"{module}.{field}", dtype, shape, parts(field)) for field, dtype, shape in shapes
    )
    return NBitsWeights(weights, n, k, bits, size)


def _field(packed: NBits, field: str, scale_dtype: str) -> Array:
    if field == "scales":
        return packed.scales.astype(np.float32 if scale_dtype == "F32" else np.float16)
    array: Array = getattr(packed, field)
    return array
