"""GPTQ: round column by column, and let the columns still to come absorb each error."""

from __future__ import annotations

import torch

from bcquant.kernels import solver_native as native
from bcquant.solvers import GridWeight
from bcquant.solvers._curvature import Curvature
from bcquant.solvers._search import range_grid, search_grid
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import SolveOptions

BLOCK = 128  # columns whose errors reach the rest of the matrix in one product
TILE_ELEMENTS = 1 << 24  # weights solved at once: bounds the working copy to 64 MB


class Gptq:
    """Optimal Brain Surgeon on a uniform grid, all rows at once (rows never interact).

    Source: Frantar et al. 2022, algorithm 1, with static groups when columns are reordered.
    With act_order the scales are fitted on the original weights; in file order each group's are
    fitted when its turn comes, on weights that have absorbed every earlier error (a block never
    crosses a group's start, so the result does not depend on the block size).
    """

    key = "gptq"

    def solve(
        self,
        weight_NK: torch.Tensor,
        curvature: Curvature,
        fmt: QuantFormat,
        options: SolveOptions,
    ) -> GridWeight:
        """See `Solver.solve`."""
        rows = max(32, TILE_ELEMENTS // weight_NK.shape[1])
        parts = [
            _Tile(weight_NK[n : n + rows], curvature, fmt, options).run()
            for n in range(0, weight_NK.shape[0], rows)
        ]
        return GridWeight(
            torch.cat([p.codes_NK for p in parts]),
            torch.cat([p.scales_NG for p in parts]),
            torch.cat([p.zeros_NG for p in parts]),
            fmt,
        )


class _Tile:
    """The state of one tile of rows while its columns are visited.

    Weights are kept transposed (columns in visiting order, rows contiguous), so that a column is
    one contiguous vector.
    """

    def __init__(
        self, weight_NK: torch.Tensor, curvature: Curvature, fmt: QuantFormat, options: SolveOptions
    ) -> None:
        self.curvature, self.fmt, self.options = curvature, fmt, options
        self.upper = curvature.upper_KK
        self.num_columns = weight_NK.shape[1]
        self.width = fmt.group_width(self.num_columns)
        weight_NK = torch.where(curvature.dead_K, 0.0, weight_NK)
        self.group_of_K = (curvature.order_K // self.width).to(torch.int32).numpy()
        self.weights_K = curvature.inverse_weights_K()
        if options.act_order:
            scales, zeros = self._fit(weight_NK, self.weights_K)
            self.scales_GR, self.zeros_GR = scales.T.contiguous(), zeros.T.contiguous()
        else:
            shape = (fmt.num_groups(self.num_columns), weight_NK.shape[0])
            self.scales_GR, self.zeros_GR = torch.empty(shape), torch.empty(shape)
        self.work_KR = weight_NK.T[curvature.order_K].contiguous()
        self.codes_KR = torch.empty(self.work_KR.shape, dtype=torch.uint8)

    def _fit(
        self, weight_NK: torch.Tensor, weights_K: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.options.scale_search:
            return search_grid(weight_NK, weights_K, self.fmt, self.options.num_ratios)
        return range_grid(weight_NK, self.fmt)

    def run(self) -> GridWeight:
        span = self.num_columns if self.options.act_order else self.width
        for begin in range(0, self.num_columns, span):
            end = min(begin + span, self.num_columns)
            if not self.options.act_order:
                self._fit_group(begin, end)
            for start in range(begin, end, BLOCK):
                stop = min(start + BLOCK, end)
                errors = self._solve_block(start, stop)
                self.work_KR[stop:].addmm_(self.upper[start:stop, stop:].T, errors, alpha=-1)
        codes = torch.empty_like(self.codes_KR)
        codes[self.curvature.order_K] = self.codes_KR
        return GridWeight(
            codes.T.contiguous(),
            self.scales_GR.T.contiguous(),
            self.zeros_GR.T.contiguous(),
            self.fmt,
        )

    def _fit_group(self, begin: int, end: int) -> None:
        group = begin // self.width
        current = self.work_KR[begin:end].T.contiguous()
        scales, zeros = self._fit(current, self.weights_K[begin:end])
        self.scales_GR[group], self.zeros_GR[group] = scales[:, 0], zeros[:, 0]

    def _solve_block(self, start: int, stop: int) -> torch.Tensor:
        """Round columns start..stop; returns their errors (stop - start, R), scaled by 1 / U_jj."""
        errors = torch.empty(stop - start, self.work_KR.shape[1])
        native.round_block(
            self.work_KR[start:stop].numpy(),
            errors.numpy(),
            self.codes_KR[start:stop].numpy(),
            self.upper[start:stop, start:stop].contiguous().numpy(),
            self.group_of_K[start:stop],
            self.scales_GR.numpy(),
            self.zeros_GR.numpy(),
            self.fmt.max_code,
            torch.get_num_threads(),
        )
        return errors


SOLVER = Gptq()
