"""Candidates for a module, and the choice among them on tokens that built none of them."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from bcquant.calib.layer_stream import StageData
from bcquant.errors import SolverError
from bcquant.solvers import GridWeight, find_solver
from bcquant.solvers._curvature import Curvature, factorize
from bcquant.spec.recipe import Recipe


@dataclass(frozen=True)
class ModuleResult:
    """The kept candidate of a module and why it was kept.

    Attributes:
        losses: candidate -> relative output error ||X W^T - X^ Q^T||^2 / ||X W^T||^2 on held-out
            tokens, X the float stream's input and X^ the quantized prefix's.
        damp_percent: damping of the factorisation; None when there was none (fallback).
        note: what went wrong or was left out, "" if nothing.
    """

    grid: GridWeight
    candidate: str
    losses: dict[str, float]
    damp_percent: float | None
    seconds: float
    note: str


def solve_stage(stage: StageData, recipe: Recipe) -> dict[str, ModuleResult]:
    """Quantize the modules of a stage, which share one input.

    The Hessian and the cross moment are factored once; every module gets RTN, the recipe's solver
    and its retargeted variants, and keeps the best on held-out tokens. A Hessian that cannot be
    factored costs its modules the calibrated candidates, never the run.

    Raises:
        SolverError: a weight of the checkpoint is not finite.
    """
    for name, weight in stage.weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise SolverError(
                f"{name}: holds weights that are not finite; the checkpoint is damaged"
            )
    cross_KK = stage.moments.take_cross()
    hessian_KK = stage.moments.hessian()
    notes = []
    if stage.moments.num_dropped:
        notes.append(f"{stage.moments.num_dropped} tokens with non-finite activations left out")
    shifts: dict[str, torch.Tensor] = {}
    curvature: Curvature | None = None
    try:
        if stage.moments.num_tokens == 0:
            raise SolverError("no token with finite activations")
        if recipe.guard and not len(stage.held_quant_MK):
            raise SolverError("too few calibration tokens to hold any out for the guard")
        if cross_KK is not None and recipe.retarget_strengths:
            shifts = {name: weight @ cross_KK for name, weight in stage.weights.items()}
            del cross_KK  # as large as the Hessian, and not needed beside its factor
            shifts = _shifts(shifts, hessian_KK, recipe.retarget_damp_percent)
            if not shifts:
                notes.append("not retargeted: the damped Hessian is not positive definite")
        curvature = factorize(hessian_KK, recipe.solve.damp_percent, recipe.solve.act_order)
        if curvature.damp_percent > recipe.solve.damp_percent:
            notes.append(f"damping raised to {curvature.damp_percent:.3g}")
    except SolverError as error:
        notes.append(f"rounded to nearest: {error}")
    del hessian_KK
    results = {}
    for name, weight in stage.weights.items():
        start = time.monotonic()
        contest = _Contest(weight, stage, recipe)
        _enter_all(contest, shifts.pop(name, None), curvature)
        results[name] = ModuleResult(
            contest.kept_grid(), contest.kept, contest.losses,
            curvature.damp_percent if curvature else None,
            time.monotonic() - start, "; ".join(notes),
        )  # fmt: skip
    return results


def _shifts(
    products: dict[str, torch.Tensor], hessian_KK: torch.Tensor, damp_percent: float
) -> dict[str, torch.Tensor]:
    """W (dX^T X^) H^-1 for every module: the step from W to the weight whose output on X^ is
    nearest to the float output on X; {} if H cannot be factored.

    Args:
        products: W (dX^T X^) by module, shape (N, K).
        hessian_KK: damped for the factorisation and put back.
    Source: QUANT.md section 3 (A).
    """
    diagonal = hessian_KK.diagonal()
    before = diagonal.clone()
    diagonal += damp_percent * float(before.mean())
    lower, info = torch.linalg.cholesky_ex(hessian_KK)
    diagonal.copy_(before)
    if int(info) != 0:
        return {}
    return {
        name: torch.cholesky_solve(product.T, lower).T.contiguous()
        for name, product in products.items()
    }


class _Contest:
    """The candidates of one module; keeps the best so far, without the guard the last."""

    def __init__(self, weight_NK: torch.Tensor, stage: StageData, recipe: Recipe) -> None:
        self.weight_NK, self.recipe = weight_NK, recipe
        self.seen_MK = stage.held_quant_MK
        self.wanted_MN = stage.held_float_MK @ weight_NK.T
        self.scale = max(float(self.wanted_MN.square().sum(dtype=torch.float64)), 1e-30)
        self.losses: dict[str, float] = {}
        self.kept = ""
        self._grid: GridWeight | None = None

    def enter(self, label: str, grid: GridWeight) -> float:
        """Judge a candidate; its loss."""
        error = (self.seen_MK @ grid.dequantize().T).sub_(self.wanted_MN)
        loss = float(error.square_().sum(dtype=torch.float64)) / self.scale
        if not math.isfinite(loss):  # squares beyond float32; worse than any number
            loss = sys.float_info.max
        if not self.kept or not self.recipe.guard or loss < self.losses[self.kept]:
            self.kept, self._grid = label, grid
        self.losses[label] = loss
        return loss

    def kept_grid(self) -> GridWeight:
        """The winner."""
        assert self._grid is not None, "a contest without candidates"
        return self._grid


def _enter_all(
    contest: _Contest, shift_NK: torch.Tensor | None, curvature: Curvature | None
) -> None:
    """Every candidate of the recipe, the plainest first; without a curvature only RTN."""
    recipe, weight_NK = contest.recipe, contest.weight_NK
    fmt, options = recipe.format, recipe.solve
    plain = replace(options, scale_search=False)
    rtn, solver = find_solver("rtn"), find_solver(recipe.solver)
    if curvature is None:
        contest.enter("rtn", rtn.solve(weight_NK, _flat(weight_NK.shape[1]), fmt, plain))
        return
    if recipe.guard or recipe.solver == "rtn":
        contest.enter("rtn", rtn.solve(weight_NK, curvature, fmt, plain))
    label = recipe.solver + ("+search" if options.scale_search else "")
    if label == "rtn":
        return
    tried = {0.0: contest.enter(label, solver.solve(weight_NK, curvature, fmt, options))}
    if shift_NK is None:
        return
    for strength in (*recipe.retarget_strengths, None):
        a = _vertex(tried) if strength is None else strength
        if a is None or (strength is None and not recipe.guard):
            return
        moved = torch.add(weight_NK, shift_NK, alpha=a)
        result = solver.solve(moved, curvature, fmt, options)
        tried[a] = contest.enter(f"{label}+retarget{a:.2f}", result)


def _vertex(tried: dict[float, float]) -> float | None:
    """The strength at the minimum of the parabola through (strength, loss), in steps of 0.05;
    None if it bends the wrong way, is out of 0 .. 1, or is next to one that was tried.

    The held-out loss is a quadratic of the strength but for rounding.
    """
    if len(tried) < 3 or max(tried.values()) == sys.float_info.max:
        return None
    square, linear, _ = np.polyfit(list(tried), list(tried.values()), 2)
    if not square > 0:
        return None
    best = round(float(-linear / (2 * square)) * 20) / 20
    is_near = any(abs(best - a) < 0.1 for a in tried)
    return None if is_near or not 0 < best < 1 else best


def _flat(in_features: int) -> Curvature:
    """The curvature of an unknown input: every column counts the same."""
    ones = torch.ones(in_features)
    return Curvature(ones, ones == 0, torch.arange(in_features), torch.eye(0), 0.0)
