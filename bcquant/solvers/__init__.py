"""Solvers: one method, one file exporting `SOLVER`.

A solver is a pure function of (weight, curvature, format, options); the curvature is the layer's
Hessian, factored once and shared by every module and candidate that sees the same input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from bcquant import registry
from bcquant.quant.tensors import QuantizedTensor
from bcquant.solvers._curvature import Curvature
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import SolveOptions


@dataclass(frozen=True)
class GridWeight:
    """A solver's result, still as tensors.

    Attributes:
        codes_NK: uint8, shape (N, K).
        scales_NG: float32 holding float16 values, shape (N, G).
        zeros_NG: float32 holding integers, shape (N, G).
    """

    codes_NK: torch.Tensor
    scales_NG: torch.Tensor
    zeros_NG: torch.Tensor
    format: QuantFormat

    def dequantize(self) -> torch.Tensor:
        """float32 weight, shape (N, K)."""
        width = self.format.group_width(self.codes_NK.shape[1])
        group_K = torch.arange(self.codes_NK.shape[1]) // width
        shifted = self.codes_NK.to(torch.float32).sub_(self.zeros_NG[:, group_K])
        return shifted.mul_(self.scales_NG[:, group_K])

    def rows(self, start: int, stop: int) -> GridWeight:
        """The result for output rows start..stop."""
        return GridWeight(
            self.codes_NK[start:stop],
            self.scales_NG[start:stop],
            self.zeros_NG[start:stop],
            self.format,
        )

    def quantized(self) -> QuantizedTensor:
        """The canonical tensor that file formats are made from."""
        return QuantizedTensor(
            np.ascontiguousarray(self.codes_NK.numpy()),
            np.ascontiguousarray(self.scales_NG.numpy().astype(np.float16)),
            np.ascontiguousarray(self.zeros_NG.numpy().astype(np.uint8)),
            self.format,
        )


class Solver(Protocol):
    """What a file in this package exports as SOLVER."""

    key: str

    def solve(
        self,
        weight_NK: torch.Tensor,
        curvature: Curvature,
        fmt: QuantFormat,
        options: SolveOptions,
    ) -> GridWeight:
        """Codes, scales and zeros for float32 `weight_NK`, shape (N, K). Rows are independent."""
        ...


def find_solver(key: str) -> Solver:
    """The solver whose file is called `key`."""
    solver: Solver = registry.load("bcquant.solvers", key, "SOLVER")
    return solver
