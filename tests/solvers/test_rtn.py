"""bcquant.solvers.rtn: nearest codes on the range's grid or on a searched one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_layer import hessian_of, random_inputs, random_weight

from bcquant.quant.grid import quantize_nearest
from bcquant.solvers import find_solver
from bcquant.solvers._curvature import Curvature, factorize
from bcquant.solvers.rtn import round_to_grid
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import SolveOptions

CURVATURE = factorize(hessian_of(random_inputs(200, 40)), 0.01, True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [8, 16, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_without_search_it_equals_the_numpy_grid(bits: int, group: int, symmetric: bool) -> None:
    fmt = QuantFormat(bits, group, symmetric)
    weight = random_weight(16, 40) + 0.03
    grid = find_solver("rtn").solve(weight, CURVATURE, fmt, SolveOptions(scale_search=False))
    wanted = quantize_nearest(weight.numpy(), fmt)
    found = grid.quantized()
    # Two ways to the same float32 quotient: the last bit may differ before it becomes float16.
    assert np.mean(found.scales_NG == wanted.scales_NG) > 0.98
    assert np.mean(found.codes_NK == wanted.codes_NK) > 0.98
    assert np.mean(found.zeros_NG == wanted.zeros_NG) > 0.98


def test_search_weights_an_error_by_the_hessian_diagonal() -> None:
    fmt, weight = QuantFormat(3, 16), random_weight(16, 40)
    solver, flat = find_solver("rtn"), factorize(torch.eye(40), 0.01, True)

    def loss(curvature: Curvature, scale_search: bool) -> float:
        grid = solver.solve(weight, curvature, fmt, SolveOptions(scale_search=scale_search))
        return float(((grid.dequantize() - weight).square() * CURVATURE.diag_K).sum())

    assert loss(CURVATURE, True) < 0.8 * loss(flat, True)
    assert loss(CURVATURE, True) < 0.8 * loss(CURVATURE, False)


def test_every_weight_goes_to_the_nearest_level() -> None:
    fmt = QuantFormat(2, 8)
    scales, zeros = torch.tensor([[0.5, -0.25]]), torch.full((1, 2), 2.0)
    weight = torch.linspace(-2, 2, 16)[None]
    found = round_to_grid(weight, scales, zeros, fmt).dequantize()
    for k in range(16):
        levels = float(scales[0, k // 8]) * (torch.arange(4.0) - 2)
        distance = (levels - weight[0, k]).abs().min()
        assert abs(float(found[0, k] - weight[0, k])) == pytest.approx(float(distance))
