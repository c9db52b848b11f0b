"""torch's linears on a CPU: bfloat16, and 4-bit weights with bfloat16 activations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

VERSION = f"torch {torch.__version__}"


class TorchBf16:
    """torch.nn.functional.linear in bfloat16, a weight for each copy."""

    def __init__(
        self, codes_NK: NDArray[np.uint8], scales_NG: NDArray[np.float16], copies: int
    ) -> None:
        first = torch.from_numpy(dequantized(codes_NK, scales_NG)).bfloat16()
        self._weights = [first.clone() for _ in range(copies)]
        self.weight_bytes = first.numel() * 2

    def bind(self, x_MK: NDArray[np.float32]) -> None:
        """Use this input from now on."""
        self._x = torch.from_numpy(x_MK).bfloat16()

    @torch.inference_mode()
    def run(self) -> None:
        """All copies, one after another."""
        for weight in self._weights:
            torch.nn.functional.linear(self._x, weight)

    @torch.inference_mode()
    def result(self) -> NDArray[np.float32]:
        """The output of the first copy, (M, N)."""
        return torch.nn.functional.linear(self._x, self._weights[0]).float().numpy()


class TorchInt4:
    """aten::_weight_int4pack_mm_for_cpu: int4 weights, bfloat16 activations and scales.

    It is the 4-bit linear that torch itself has on x86: aten::_dyn_quant_matmul_4bit (int8
    activations) is KleidiAI's, with a plain loop elsewhere.
    """

    def __init__(
        self, codes_NK: NDArray[np.uint8], scales_NG: NDArray[np.float16], copies: int
    ) -> None:
        codes = torch.from_numpy(codes_NK.astype(np.int32))
        scales = torch.from_numpy(scales_NG.astype(np.float32)).bfloat16().t()
        pairs = torch.stack([scales, torch.zeros_like(scales)], -1).contiguous()  # [G, N, 2]
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        self._weights = [(packed.clone(), pairs.clone()) for _ in range(copies)]
        self._group_size = codes_NK.shape[1] // scales_NG.shape[1]
        self.weight_bytes = packed.numel() + pairs.numel() * 2

    def bind(self, x_MK: NDArray[np.float32]) -> None:
        """Use this input from now on."""
        self._x = torch.from_numpy(x_MK).bfloat16()

    @torch.inference_mode()
    def run(self) -> None:
        """All copies, one after another."""
        for packed, pairs in self._weights:
            torch.ops.aten._weight_int4pack_mm_for_cpu(self._x, packed, self._group_size, pairs)

    @torch.inference_mode()
    def result(self) -> NDArray[np.float32]:
        """The output of the first copy, (M, N)."""
        packed, pairs = self._weights[0]
        found = torch.ops.aten._weight_int4pack_mm_for_cpu(self._x, packed, self._group_size, pairs)
        return found.float().numpy()


def dequantized(codes_NK: NDArray[np.uint8], scales_NG: NDArray[np.float16]) -> NDArray[np.float32]:
    """W = scale * (code - 8), (N, K)."""
    group_size = codes_NK.shape[1] // scales_NG.shape[1]
    centred = codes_NK.astype(np.float32) - 8.0
    return centred * np.repeat(scales_NG.astype(np.float32), group_size, axis=1)
