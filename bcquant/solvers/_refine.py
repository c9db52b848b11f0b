"""Coordinate descent on codes and closed-form scales, on top of another solver's result."""

from __future__ import annotations

import torch

from bcquant.kernels import solver_native as native
from bcquant.solvers import GridWeight

BLOCK = 128  # columns whose gradient is taken in one product; a block never crosses groups
TILE_ELEMENTS = 1 << 22  # weights refined at once: bounds the errors to 16 MB, near a core's cache


def refine(
    start: GridWeight, target_NK: torch.Tensor, hessian_KK: torch.Tensor, num_sweeps: int
) -> GridWeight:
    """Lower tr((Q - W*) H (Q - W*)^T) from `start`, group by group: codes, then the scale.

    A sweep visits every column once, in file order. The gradient (Q - W*) H of a block is taken
    from the current errors when its turn comes, so that a sweep is one product of the size of
    W* H, and rounding does not add up. Ends early when a sweep changes nothing.

    Args:
        target_NK: W*, float32, shape (N, K); finite.
        hessian_KK: float32, symmetric, shape (K, K).
        num_sweeps: at most this many.
    Returns:
        the same zeros; the loss of no row is larger than that of `start`.
    Source: QUANT.md section 3 (D) and (E); the loops are csrc/solver/{coordinate_descent,
        scale_refit}.cpp.
    """
    rows = max(native.ROW_STEP, TILE_ELEMENTS // target_NK.shape[1])
    parts = [
        _refine_tile(start.rows(n, n + rows), target_NK[n : n + rows], hessian_KK, num_sweeps)
        for n in range(0, target_NK.shape[0], rows)
    ]
    return GridWeight(
        torch.cat([p.codes_NK for p in parts]),
        torch.cat([p.scales_NG for p in parts]),
        start.zeros_NG,
        start.format,
    )


def _refine_tile(
    start: GridWeight, target_NK: torch.Tensor, hessian_KK: torch.Tensor, num_sweeps: int
) -> GridWeight:
    """`refine` on rows that fit into memory together; arrays are transposed, rows contiguous."""
    errors_KR = start.dequantize().sub_(target_NK).T.contiguous()
    # Copies: the transpose of one column, or of one group, would be the input itself.
    codes_KR = start.codes_NK.T.clone(memory_format=torch.contiguous_format)
    scales_GR = start.scales_NG.T.clone(memory_format=torch.contiguous_format)
    zeros_GR = start.zeros_NG.T.contiguous()
    num_columns, num_rows = errors_KR.shape
    width = start.format.group_width(num_columns)
    threads = torch.get_num_threads()
    for _ in range(num_sweeps):
        gains_R = torch.zeros(num_rows, dtype=torch.float64)
        for g, begin in enumerate(range(0, num_columns, width)):
            end = min(begin + width, num_columns)
            scale, zero = scales_GR[g].numpy(), zeros_GR[g].numpy()
            for low in range(begin, end, BLOCK):
                block = slice(low, min(low + BLOCK, end))
                gradient = hessian_KK[block] @ errors_KR
                native.descend_block(
                    gradient.numpy(), errors_KR[block].numpy(), codes_KR[block].numpy(),
                    hessian_KK[block, block].numpy(), scale, zero, start.format.max_code,
                    gains_R.numpy(), threads,
                )  # fmt: skip
            group = slice(begin, end)
            if end - begin > BLOCK:
                gradient = hessian_KK[group] @ errors_KR
            native.refit_scale(
                gradient.numpy(), errors_KR[group].numpy(), codes_KR[group].numpy(),
                hessian_KK[group, group].numpy(), scale, zero, gains_R.numpy(), threads,
            )  # fmt: skip
        if not bool(gains_R.any()):
            break
    return GridWeight(
        codes_KR.T.contiguous(), scales_GR.T.contiguous(), start.zeros_NG, start.format
    )
