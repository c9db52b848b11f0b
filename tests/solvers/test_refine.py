"""bcquant.solvers._refine against a naive loop in float64, and what it must never do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_layer import hessian_of, random_inputs, random_weight

from bcquant.solvers import GridWeight, _refine, find_solver
from bcquant.solvers._curvature import factorize
from bcquant.solvers._refine import refine
from bcquant.solvers.rtn import round_to_grid
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import SolveOptions

F64 = torch.float64
LEAST_GAIN = 1e-3  # kLeastGain of csrc/solver/coordinate_descent.cpp

CASES = [
    (bits, group, symmetric)
    for bits in (2, 3, 4, 8)
    for group in (8, 16, -1)
    for symmetric in (True, False)
]


def naive_refine(
    start: GridWeight, target: torch.Tensor, hessian: torch.Tensor, num_sweeps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N, K) and scales (N, G), float64; one column of one row at a time, G from scratch."""
    n, k = target.shape
    width, top = start.format.group_width(k), start.format.max_code
    h, w = hessian.double(), target.double()
    codes, scales = start.codes_NK.double(), start.scales_NG.double()
    zeros = start.zeros_NG.double()
    group_K = torch.arange(k) // width
    for _ in range(num_sweeps):
        for r in range(n):
            for g in range(scales.shape[1]):
                part = slice(g * width, min((g + 1) * width, k))
                for j in range(part.start, part.stop):
                    error = scales[r, group_K] * (codes[r] - zeros[r, group_K]) - w[r]
                    slope, s, z = error @ h[:, j], scales[r, g], zeros[r, g]
                    if h[j, j] <= 0:
                        continue
                    best = ((codes[r, j] - z - slope / (h[j, j] * s)).round() + z).clamp(0, top)
                    step = s * (best - codes[r, j])
                    if -step * (2 * slope + h[j, j] * step) > LEAST_GAIN * h[j, j] * s * s:
                        codes[r, j] = best
                error = scales[r, group_K] * (codes[r] - zeros[r, group_K]) - w[r]
                u, s = codes[r, part] - zeros[r, g], scales[r, g]
                square, slope = u @ h[part, part] @ u, u @ (h[part] @ error)
                if square <= 0:
                    continue
                step = (s - slope / square).half().double() - s
                if -step * (2 * slope + step * square) > 0:
                    scales[r, g] = s + step
    return codes, scales


def losses_N(grid: GridWeight, target: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """(Q - W) H (Q - W)^T of every row, float64, from the float64 value of codes and scales."""
    group_K = torch.arange(target.shape[1]) // grid.format.group_width(target.shape[1])
    shifted = grid.codes_NK.double() - grid.zeros_NG.double()[:, group_K]
    error = grid.scales_NG.double()[:, group_K] * shifted - target.double()
    return ((error @ hessian.double()) * error).sum(1)


def gptq_start(weight: torch.Tensor, hessian: torch.Tensor, fmt: QuantFormat) -> GridWeight:
    options = SolveOptions()
    return find_solver("gptq").solve(weight, factorize(hessian, 0.01, True), fmt, options)


def check_never_worse(
    start: GridWeight, found: GridWeight, target: torch.Tensor, hessian: torch.Tensor
) -> None:
    before, after = losses_N(start, target, hessian), losses_N(found, target, hessian)
    # Moves are judged on float32 gradients, which are off by 1e-6 of the terms that they are sums
    # of. Where terms cancel (fewer tokens than columns) the loss itself is no more than that.
    error = (start.dequantize() - target).double()
    terms = ((error.abs() @ hessian.double().abs()) * error.abs()).sum(1)
    assert (after <= before + 1e-6 * terms).all()
    assert torch.equal(found.zeros_NG, start.zeros_NG)
    assert torch.equal(found.scales_NG.half().float(), found.scales_NG)
    assert torch.isfinite(found.scales_NG).all() and (found.scales_NG != 0).all()
    found.quantized()  # raises unless codes, scales and zeros fit the format


def check_against_naive(
    weight: torch.Tensor, hessian: torch.Tensor, fmt: QuantFormat, num_sweeps: int = 2
) -> GridWeight:
    start = gptq_start(weight, hessian, fmt)
    found = refine(start, weight, hessian, num_sweeps)
    codes, scales = naive_refine(start, weight, hessian, num_sweeps)
    rows = (found.codes_NK == codes).all(1) & (found.scales_NG == scales).all(1)
    # Rows never interact. A float32 gradient is off by about 1e-5 of a step, so a weight or a scale
    # that close to the edge between two values may go the other way, and the rest of its row then
    # differs.
    assert rows.double().mean() >= 0.9
    # Where it does differ, the loss does not: descents that part at a tie end equally low.
    naive = GridWeight(codes.to(torch.uint8), scales.float(), start.zeros_NG, fmt)
    wanted = float(losses_N(naive, weight, hessian).sum())
    assert float(losses_N(found, weight, hessian).sum()) == pytest.approx(wanted, rel=0.02)
    check_never_worse(start, found, weight, hessian)
    return found


@pytest.mark.parametrize(("bits", "group", "symmetric"), CASES)
def test_equals_the_naive_loop(bits: int, group: int, symmetric: bool) -> None:
    # 44 columns: no multiple of 16, and the last group of 8 and of 16 is shorter.
    weight, hessian = random_weight(12, 44, bits), hessian_of(random_inputs(200, 44, bits))
    check_against_naive(weight, hessian, QuantFormat(bits, group, symmetric))


@pytest.mark.parametrize("n", [1, 31, 33])
def test_any_number_of_rows_equals_the_naive_loop(n: int) -> None:
    weight, hessian = random_weight(n, 20), hessian_of(random_inputs(100, 20))
    check_against_naive(weight, hessian, QuantFormat(4, 8), num_sweeps=1)


@pytest.mark.parametrize("group", [136, -1])
def test_groups_wider_than_a_block_equal_the_naive_loop(group: int) -> None:
    weight, hessian = random_weight(4, 300), hessian_of(random_inputs(900, 300, spread=0.5))
    check_against_naive(weight, hessian, QuantFormat(3, group), num_sweeps=1)


def test_dead_columns_keep_their_codes() -> None:
    inputs = random_inputs(200, 40)
    dead = [0, 5, 16, 17, 18, 19, 20, 21, 22, 23, 39]  # of groups of 8 one is all dead
    inputs[:, dead] = 0
    weight, hessian = random_weight(12, 40), hessian_of(inputs)
    start = gptq_start(weight, hessian, QuantFormat(4, 8))
    found = check_against_naive(weight, hessian, QuantFormat(4, 8))
    assert torch.equal(found.codes_NK[:, dead], start.codes_NK[:, dead])
    assert torch.equal(found.scales_NG[:, 2], start.scales_NG[:, 2])


def test_a_hessian_of_zeros_changes_nothing() -> None:
    weight, fmt = random_weight(8, 24), QuantFormat(4, 8)
    start = gptq_start(weight, torch.eye(24), fmt)
    found = refine(start, weight, torch.zeros(24, 24), 3)
    assert torch.equal(found.codes_NK, start.codes_NK)
    assert torch.equal(found.scales_NG, start.scales_NG)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), k=st.integers(1, 70), tokens=st.integers(1, 80),
    bits=st.sampled_from([2, 3, 4, 8]), group=st.sampled_from([8, 32, -1]),
    symmetric=st.booleans(), seed=st.integers(0, 1000), size=st.sampled_from([1e-4, 1.0, 1e4]),
)  # fmt: skip
def test_no_row_gets_worse_from_any_start(
    n: int, k: int, tokens: int, bits: int, group: int, symmetric: bool, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fmt = QuantFormat(bits, group, symmetric)
    weight, inputs = random_weight(n, k, seed), random_inputs(tokens, k, seed) * size
    hessian = hessian_of(inputs)
    groups = fmt.num_groups(k)
    scales = (torch.rand(n, groups, generator=generator) * 0.1 + 0.01).half().float()
    scales *= torch.where(torch.rand(n, groups, generator=generator) < 0.5, -1.0, 1.0)
    zeros = torch.randint(1, fmt.max_code + 1, (n, groups), generator=generator).float()
    if symmetric:
        zeros.fill_(fmt.symmetric_zero)
    start = round_to_grid(weight, scales, zeros, fmt)
    target = weight + 0.02 * torch.randn(n, k, generator=generator)
    found = refine(start, target, hessian, 3)
    check_never_worse(start, found, target, hessian)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_lowers_the_loss_of_gptq(bits: int, symmetric: bool) -> None:
    weight, hessian = random_weight(64, 128, 3), hessian_of(random_inputs(1024, 128, 3))
    start = gptq_start(weight, hessian, QuantFormat(bits, 64, symmetric))
    found = refine(start, weight, hessian, 4)
    before = losses_N(start, weight, hessian).sum()
    # Measured: 0.81 to 0.90 of GPTQ's loss.
    assert losses_N(found, weight, hessian).sum() < 0.95 * before


def test_more_sweeps_never_cost_and_come_to_rest() -> None:
    weight, hessian = random_weight(16, 48), hessian_of(random_inputs(200, 48))
    grid = gptq_start(weight, hessian, QuantFormat(3, 16))
    for _ in range(40):
        following = refine(grid, weight, hessian, 1)
        check_never_worse(grid, following, weight, hessian)
        is_at_rest = torch.equal(following.codes_NK, grid.codes_NK) and torch.equal(
            following.scales_NG, grid.scales_NG
        )
        grid = following
        if is_at_rest:
            break
    assert is_at_rest
    again = refine(grid, weight, hessian, 1000)  # ends at once
    assert torch.equal(again.codes_NK, grid.codes_NK)


def test_at_rest_no_single_code_lowers_the_loss() -> None:
    weight, hessian, fmt = (
        random_weight(3, 24),
        hessian_of(random_inputs(99, 24)),
        QuantFormat(3, 8),
    )
    found = refine(gptq_start(weight, hessian, fmt), weight, hessian, 100)
    least = losses_N(found, weight, hessian)
    diag, width = hessian.diagonal().double(), fmt.group_width(24)
    for j in range(24):
        margin = LEAST_GAIN * diag[j] * found.scales_NG[:, j // width].double().square()
        for code in range(fmt.max_code + 1):
            codes = found.codes_NK.clone()
            codes[:, j] = code
            other = GridWeight(codes, found.scales_NG, found.zeros_NG, fmt)
            # 1e-6: float32 gradients.
            assert (losses_N(other, weight, hessian) >= least * (1 - 1e-6) - margin).all()


@pytest.mark.parametrize("block", [1, 7, 256])
def test_result_does_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    weight, hessian = random_weight(40, 296), hessian_of(random_inputs(900, 296, spread=0.5))
    start = gptq_start(weight, hessian, QuantFormat(4, 72))
    usual = refine(start, weight, hessian, 2)
    monkeypatch.setattr(_refine, "BLOCK", block)
    other = refine(start, weight, hessian, 2)
    # Float32 sums in another order: see check_against_naive; 296 columns a row instead of 44.
    assert (usual.codes_NK == other.codes_NK).all(1).double().mean() >= 0.7


def test_result_does_not_depend_on_the_tile_or_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = random_weight(100, 48), hessian_of(random_inputs(200, 48))
    start = gptq_start(weight, hessian, QuantFormat(3, 16, False))
    usual = refine(start, weight, hessian, 2)
    monkeypatch.setattr(_refine, "TILE_ELEMENTS", 1)  # 32 rows at a time
    tiled = refine(start, weight, hessian, 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = refine(start, weight, hessian, 2)
    # Products of other shapes may be summed in another order; threads change nothing.
    assert (usual.codes_NK == tiled.codes_NK).all(1).double().mean() >= 0.95
    assert torch.equal(tiled.codes_NK, shared.codes_NK)
    assert torch.equal(tiled.scales_NG, shared.scales_NG)


@pytest.mark.parametrize(("k", "group"), [(24, 8), (24, -1), (1, -1)])
def test_inputs_are_not_written_to(k: int, group: int) -> None:
    weight, hessian = random_weight(8, k), hessian_of(random_inputs(99, k))
    start = gptq_start(weight + 0.1, hessian, QuantFormat(4, group))
    values = (weight, hessian, start.codes_NK, start.scales_NG, start.zeros_NG)
    before = [value.clone() for value in values]
    refine(start, weight, hessian, 3)
    assert all(torch.equal(a, b) for a, b in zip(values, before, strict=True))
