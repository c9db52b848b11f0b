"""Round to nearest: the floor that every other method is measured against."""

from __future__ import annotations

import torch

from bcquant.solvers import GridWeight
from bcquant.solvers._curvature import Curvature
from bcquant.solvers._search import range_grid, search_grid
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import SolveOptions


class RoundToNearest:
    """Each weight goes to the nearest grid point; no error is passed on.

    With `scale_search` the scales minimise the error weighted by the Hessian diagonal, which is
    the cost of an error that nothing compensates; without it they span the range.
    """

    key = "rtn"

    def solve(
        self,
        weight_NK: torch.Tensor,
        curvature: Curvature,
        fmt: QuantFormat,
        options: SolveOptions,
    ) -> GridWeight:
        """See `Solver.solve`."""
        if options.scale_search:
            scales, zeros = search_grid(weight_NK, curvature.diag_K, fmt, options.num_ratios)
        else:
            scales, zeros = range_grid(weight_NK, fmt)
        return round_to_grid(weight_NK, scales, zeros, fmt)


def round_to_grid(
    weight_NK: torch.Tensor, scales_NG: torch.Tensor, zeros_NG: torch.Tensor, fmt: QuantFormat
) -> GridWeight:
    """Nearest codes on a given grid. All float32; returns codes uint8 (N, K)."""
    group_K = torch.arange(weight_NK.shape[1]) // fmt.group_width(weight_NK.shape[1])
    codes = (weight_NK / scales_NG[:, group_K]).round_().add_(zeros_NG[:, group_K])
    return GridWeight(codes.clamp_(0, fmt.max_code).to(torch.uint8), scales_NG, zeros_NG, fmt)


SOLVER = RoundToNearest()
