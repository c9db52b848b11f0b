"""Quantized modules of a checkpoint, by stored name, as canonical quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import BcquantError, CheckpointError
from bcquant.io.checkpoint import CheckpointReader
from bcquant.quant.awq import from_awq, packed_shape
from bcquant.quant.packing import num_words
from bcquant.quant.quant_configs import QuantSpec
from bcquant.quant.repack import from_compressed, from_gptq, from_int8
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

# What one quantized Linear may consist of, by suffix. The first of each row marks it.
GPTQ_PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_PARTS = ("qweight", "qzeros", "scales")
PACKED_PARTS = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
)
INT8_PARTS = ("weight", "weight_scale")


class QuantizedSource:
    """Reads GPTQ, AWQ and compressed-tensors modules.

    The last module that was read stays in memory: q, k and v may be rows of one stored module.

    Attributes:
        reader: the open checkpoint.
        spec: how its config says it is quantized; None = it does not.
    """

    def __init__(self, reader: CheckpointReader, spec: QuantSpec | None) -> None:
        self.reader = reader
        self.spec = spec
        self._is_awq = spec is not None and spec.method == "awq"
        self._last: tuple[str, QuantizedTensor] | None = None

    def parts(self, module: str) -> tuple[str, ...]:
        """Stored tensor names of a quantized module, () if it is not quantized."""
        tensors = self.reader.tensors
        for suffixes in (AWQ_PARTS if self._is_awq else GPTQ_PARTS, PACKED_PARTS):
            if f"{module}.{suffixes[0]}" in tensors:
                return tuple(f"{module}.{s}" for s in suffixes if f"{module}.{s}" in tensors)
        weight = tensors.get(f"{module}.weight")
        if weight is not None and weight.dtype == "I8":
            return tuple(f"{module}.{s}" for s in INT8_PARTS if f"{module}.{s}" in tensors)
        return ()

    def check(self, module: str, shape: tuple[int, ...]) -> None:
        """Compare a module's packed weight with the shape (N, K) that the model needs.

        Raises:
            CheckpointError: it differs, or the config does not say how the module is quantized.
        """
        n, k = shape
        bits = self._format(module).bits
        marker = self.parts(module)[0]
        want = {
            "qweight": packed_shape(n, k) if self._is_awq else (num_words(k, bits), n),
            "weight_packed": (n, num_words(k, bits)),
            "weight": (n, k),
        }[marker.rpartition(".")[2]]
        found = self.reader.tensors[marker].shape
        if found != want:
            raise CheckpointError(
                f"{self.reader.path}: {marker!r} has shape {list(found)}; {list(want)} is needed "
                f"for {bits} bits and a weight of {[n, k]}"
            )

    def read(self, module: str) -> QuantizedTensor:
        """The canonical quantized weight of a stored module.

        Raises:
            CheckpointError: a tensor is missing or contradicts another, or the config does not
                say how the module is quantized; the message names the module.
        """
        if self._last is not None and self._last[0] == module:
            return self._last[1]
        fmt = self._format(module)
        assert self.spec is not None  # _format refused it
        tensors = {name.rpartition(".")[2]: self._read(name) for name in self.parts(module)}
        try:
            if "qweight" in tensors and self._is_awq:
                q = from_awq(tensors, fmt)
            elif "qweight" in tensors:
                q = from_gptq(tensors, fmt.bits, fmt.symmetric, self.spec.version, fmt.group_size)
            elif "weight_packed" in tensors:
                q = from_compressed(tensors, fmt.bits, fmt.symmetric, fmt.group_size)
            else:
                q = from_int8(tensors, fmt.activation)
        except BcquantError as error:
            raise CheckpointError(f"{self.reader.path}: {module}: {error}") from error
        self._last = (module, q)
        return q

    def _read(self, name: str) -> npt.NDArray[Any]:
        if self.reader.tensors[name].dtype == "BF16":  # scales; the bits would pass for uint16
            return self.reader.read_f32(name)
        return np.asarray(self.reader.read(name))

    def _format(self, module: str) -> QuantFormat:
        fmt = None if self.spec is None else self.spec.format_of(module)
        if fmt is None:
            said = "no quantization config" if self.spec is None else "it as not quantized"
            raise CheckpointError(
                f"{self.reader.path}: {module} holds quantized tensors but the checkpoint has "
                f"{said}; add its quantize_config.json or correct quantization_config"
            )
        return fmt


def slice_rows(q: QuantizedTensor, rows: tuple[int, int]) -> QuantizedTensor:
    """Some output rows of a quantized weight; exact, because no grid spans two rows."""
    part = slice(*rows)
    return QuantizedTensor(q.codes_NK[part], q.scales_NG[part], q.zeros_NG[part], q.format)
