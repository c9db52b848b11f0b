"""Candidates for a module, and the choice among them on tokens that built none of them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from bcquant.calib.layer_stream import StageData
from bcquant.errors import SolverError
from bcquant.solvers import GridWeight, find_solver
from bcquant.solvers._curvature import Curvature, factorize
from bcquant.solvers._refine import refine
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import Recipe

PREPARATION = "preparation"  # key of ModuleResult.seconds that is no candidate
JUDGED_ELEMENTS = 1 << 23  # weights dequantized at once to be judged: 100 MB with what they index


@dataclass(frozen=True)
class ModuleResult:
    """The kept candidate of a module and why it was kept.

    Attributes:
        losses: candidate -> relative output error ||X W^T - X^ Q^T||^2 / ||X W^T||^2 on held-out
            tokens, X the float stream's input and X^ the quantized prefix's.
        damp_percent: damping of the factorisation; None when there was none (fallback).
        seconds: candidate -> what solving and judging it took; PREPARATION -> the module's share
            of what its stage shares (factors, retargeting steps).
        note: what went wrong or was left out, "" if nothing.
    """

    grid: GridWeight
    candidate: str
    losses: dict[str, float]
    damp_percent: float | None
    seconds: dict[str, float]
    note: str


@dataclass(frozen=True)
class _Ground:
    """What the modules of a stage share.

    Attributes:
        curvature: None if the Hessian could not be factored.
        hessian_KK: damped for refinement; None where nothing is refined.
        shifts: module -> step of retargeting, shape (N, K); popped as they are used.
    """

    curvature: Curvature | None
    hessian_KK: torch.Tensor | None
    shifts: dict[str, torch.Tensor]
    notes: list[str]


def solve_stage(stage: StageData, recipe: Recipe) -> dict[str, ModuleResult]:
    """Quantize the modules of a stage, which share one input.

    The Hessian and the cross moment are factored once; every module gets RTN, the recipe's solver,
    its retargeted variants and a refinement of the best of them, and keeps the best on held-out
    tokens. A Hessian that cannot be factored costs its modules the calibrated candidates, never the
    run.

    Raises:
        SolverError: a weight of the checkpoint is not finite.
    """
    for name, weight in stage.weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise SolverError(
                f"{name}: holds weights that are not finite; the checkpoint is damaged"
            )
    start = time.monotonic()
    ground = _prepare(stage, recipe)
    share = (time.monotonic() - start) / len(stage.weights)
    results = {}
    for name, weight in stage.weights.items():
        contest = _Contest(weight, stage, recipe, recipe.format_of(name))
        _enter_all(contest, ground.shifts.pop(name, None), ground)
        results[name] = ModuleResult(
            contest.kept_grid(), contest.kept, contest.losses,
            ground.curvature.damp_percent if ground.curvature else None,
            {PREPARATION: share, **contest.seconds}, "; ".join(ground.notes),
        )  # fmt: skip
    return results


def _prepare(stage: StageData, recipe: Recipe) -> _Ground:
    """Factor what the stage's modules share; a failure becomes a note."""
    cross_KK = stage.moments.take_cross()
    hessian_KK = stage.moments.hessian()
    notes = []
    if stage.moments.num_dropped:
        notes.append(f"{stage.moments.num_dropped} tokens with non-finite activations left out")
    shifts: dict[str, torch.Tensor] = {}
    options = recipe.solve
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
        curvature = factorize(hessian_KK, options.damp_percent, options.act_order)
    except SolverError as error:
        return _Ground(None, None, {}, [*notes, f"rounded to nearest: {error}"])
    if curvature.damp_percent > options.damp_percent:
        notes.append(f"damping raised to {curvature.damp_percent:.3g}")
    if not options.refine_sweeps:
        return _Ground(curvature, None, shifts, notes)
    diagonal, live_K = hessian_KK.diagonal(), ~curvature.dead_K
    damp = max(options.refine_damp_percent, curvature.damp_percent)
    diagonal += live_K * (damp * diagonal[live_K].mean().nan_to_num())  # no live column: no mean
    return _Ground(curvature, hessian_KK, shifts, notes)


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


@dataclass(frozen=True)
class _Candidate:
    label: str
    grid: GridWeight
    loss: float


class _Contest:
    """The candidates of one module; keeps the best so far, without the guard the last."""

    def __init__(
        self, weight_NK: torch.Tensor, stage: StageData, recipe: Recipe, fmt: QuantFormat
    ) -> None:
        self.weight_NK, self.recipe, self.format = weight_NK, recipe, fmt
        self.seen_MK = stage.held_quant_MK
        self.wanted_MN = stage.held_float_MK @ weight_NK.T
        self.scale = max(float(self.wanted_MN.square().sum(dtype=torch.float64)), 1e-30)
        self.losses: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.kept = ""
        self._grid: GridWeight | None = None

    def enter(self, label: str, make: Callable[[], GridWeight]) -> _Candidate:
        """Make a candidate and judge it."""
        start = time.monotonic()
        grid = make()
        loss = self._squared_error(grid) / self.scale
        if not math.isfinite(loss):  # squares beyond float32; worse than any number
            loss = sys.float_info.max
        if not self.kept or not self.recipe.guard or loss < self.losses[self.kept]:
            self.kept, self._grid = label, grid
        self.losses[label] = loss
        self.seconds[label] = time.monotonic() - start
        return _Candidate(label, grid, loss)

    def _squared_error(self, grid: GridWeight) -> float:
        """||X^ Q^T - X W^T||^2 on the held-out tokens, some rows of Q at a time."""
        num_rows, num_columns = grid.codes_NK.shape
        step, total = max(1, JUDGED_ELEMENTS // num_columns), 0.0
        for n in range(0, num_rows, step):
            error = self.seen_MK @ grid.rows(n, n + step).dequantize().T
            error -= self.wanted_MN[:, n : n + step]
            total += float(error.square_().sum(dtype=torch.float64))
        return total

    def kept_grid(self) -> GridWeight:
        """The winner."""
        assert self._grid is not None, "a contest without candidates"
        return self._grid


def _enter_all(contest: _Contest, shift_NK: torch.Tensor | None, ground: _Ground) -> None:
    """Every candidate of the recipe, the plainest first; without a curvature only RTN."""
    recipe, weight_NK, curvature = contest.recipe, contest.weight_NK, ground.curvature
    fmt, options = contest.format, recipe.solve
    plain = replace(options, scale_search=False)
    rtn, solver = find_solver("rtn"), find_solver(recipe.solver)
    if curvature is None:
        flat = _flat(weight_NK.shape[1])
        contest.enter("rtn", partial(rtn.solve, weight_NK, flat, fmt, plain))
        return
    if recipe.guard or recipe.solver == "rtn":
        contest.enter("rtn", partial(rtn.solve, weight_NK, curvature, fmt, plain))
    label = recipe.solver + ("+search" if options.scale_search else "")
    if label == "rtn":
        return
    best = contest.enter(label, partial(solver.solve, weight_NK, curvature, fmt, options))
    target = weight_NK
    if shift_NK is not None:
        best, strength = _retarget(contest, best, shift_NK, curvature)
        target = torch.add(weight_NK, shift_NK, alpha=strength)
    if ground.hessian_KK is not None:
        make = partial(refine, best.grid, target, ground.hessian_KK, options.refine_sweeps)
        contest.enter(f"{best.label}+refined", make)


def _retarget(
    contest: _Contest, best: _Candidate, shift_NK: torch.Tensor, curvature: Curvature
) -> tuple[_Candidate, float]:
    """Enter the recipe's strengths and the best between them; the winner, or without the guard the
    last, and its strength. `best` is the candidate of strength 0."""
    recipe, label, winner = contest.recipe, best.label, 0.0
    solver, tried = find_solver(recipe.solver), {0.0: best.loss}
    for strength in (*recipe.retarget_strengths, None):
        a = _vertex(tried) if strength is None else strength
        if a is None or (strength is None and not recipe.guard):
            break
        moved = torch.add(contest.weight_NK, shift_NK, alpha=a)
        make = partial(solver.solve, moved, curvature, contest.format, recipe.solve)
        found = contest.enter(f"{label}+retarget{a:.2f}", make)
        tried[a] = found.loss
        if found.loss < best.loss or not recipe.guard:
            best, winner = found, a
    return best, winner


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
