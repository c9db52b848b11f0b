"""The C++ inner loops against plain numpy loops, and their refusals."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels import solver_native


def _block(columns: int, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.normal(0, 0.3, (columns, columns))) + np.diag(np.full(columns, 2.0))
    return {
        "work": rng.normal(0, 1, (columns, rows)).astype(np.float32),
        "errors": np.zeros((columns, rows), np.float32),
        "codes": np.zeros((columns, rows), np.uint8),
        "upper": upper.astype(np.float32),
        "group_of": (np.arange(columns) % 2).astype(np.int32),
        "scales": rng.choice([-1, 1], (2, rows)).astype(np.float32)
        * rng.uniform(0.1, 0.3, (2, rows)).astype(np.float32),
        "zeros": rng.integers(1, 15, (2, rows)).astype(np.float32),
    }


def _run(block: dict[str, np.ndarray], max_code: int = 15, num_threads: int = 1) -> None:
    solver_native.round_block(*block.values(), max_code, num_threads)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_round_block_equals_a_plain_loop(rows: int) -> None:
    block = _block(columns=24, rows=rows)
    work, upper = block["work"].astype(np.float64), block["upper"].astype(np.float64)
    codes = np.zeros_like(block["codes"])
    for j in range(len(work)):
        scale = block["scales"][block["group_of"][j]].astype(np.float64)
        zero = block["zeros"][block["group_of"][j]].astype(np.float64)
        codes[j] = np.clip(np.rint(work[j] / scale) + zero, 0, 15)
        error = (work[j] - (codes[j] - zero) * scale) / upper[j, j]
        work[j + 1 :] -= np.outer(upper[j, j + 1 :], error)
    _run(block)
    # A weight within float32 rounding of a tie may go either way, and what follows it differs.
    assert (block["codes"] != codes).mean() < 0.01


def test_round_block_does_not_depend_on_the_number_of_threads() -> None:
    one, four = _block(64, 200), _block(64, 200)
    _run(one, num_threads=1)
    _run(four, num_threads=4)
    assert np.array_equal(one["codes"], four["codes"])
    assert np.array_equal(one["errors"], four["errors"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("codes", np.zeros((24, 9), np.uint8)),
        ("codes", np.zeros((24, 8), np.int8)),
        ("upper", np.zeros((23, 24), np.float32)),
        ("scales", np.zeros((2, 9), np.float32)),
        ("zeros", np.zeros((3, 8), np.float32)),
        ("group_of", np.full(24, 2, np.int32)),
        ("group_of", np.full(24, -1, np.int32)),
        ("work", np.zeros((24, 8), np.float64)),
    ],
)
def test_round_block_refuses_arrays_that_do_not_fit(name: str, value: np.ndarray) -> None:
    block = _block(24, 8)
    block[name] = value
    with pytest.raises(ShapeError):
        _run(block)


def test_round_block_refuses_a_block_that_is_too_wide() -> None:
    with pytest.raises(KernelError, match="bcq_round_block"):
        _run(_block(solver_native.MAX_BLOCK + 1, 8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_grid_does_not_depend_on_the_number_of_threads(symmetric: bool) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 1, (100, 72)).astype(np.float32)
    cost = rng.uniform(0.5, 2, 72).astype(np.float32)
    one = solver_native.search_grid(weight, cost, 32, 15, symmetric, 12, num_threads=1)
    four = solver_native.search_grid(weight, cost, 32, 15, symmetric, 12, num_threads=4)
    assert np.array_equal(one[0], four[0]) and np.array_equal(one[1], four[1])
    assert one[0].shape == one[1].shape == (100, 3)


def test_search_grid_refuses_a_cost_of_another_length() -> None:
    weight = np.zeros((2, 8), np.float32)
    with pytest.raises(ShapeError, match="cost"):
        solver_native.search_grid(weight, np.ones(7, np.float32), 8, 15, True, 4, 1)


def test_search_grid_refuses_a_code_range_it_cannot_hold() -> None:
    weight = np.zeros((2, 8), np.float32)
    with pytest.raises(KernelError, match="bcq_search_grid"):
        solver_native.search_grid(weight, np.ones(8, np.float32), 8, 256, True, 4, 1)


def test_a_missing_extension_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    solver_native._library.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match=r"not built; install bcquant with a C\+\+17 compiler"):
        solver_native._library()
    solver_native._library.cache_clear()


def _group(columns: int, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Codes, a weight nearby, and the gradient of the loss, of one group that is the whole row."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(0, 1, (3 * columns, columns)) @ rng.normal(0, 1, (columns, columns))
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    scale = rng.uniform(0.1, 0.3, rows) * rng.choice([-1, 1], rows)
    scale, zero = scale.astype(np.float16).astype(np.float32), rng.integers(1, 15, rows)
    codes = rng.integers(0, 16, (columns, rows)).astype(np.uint8)
    errors = rng.normal(0, 0.2, (columns, rows)).astype(np.float32)
    return {
        "gradient": hessian @ errors, "errors": errors, "codes": codes, "hessian": hessian,
        "scale": scale, "zero": zero.astype(np.float32), "gains": np.zeros(rows),
    }  # fmt: skip


def _descend(group: dict[str, np.ndarray], num_threads: int = 1, max_code: int = 15) -> None:
    *arrays, gains = group.values()
    solver_native.descend_block(*arrays, max_code, gains, num_threads)


def _refit(group: dict[str, np.ndarray], num_threads: int = 1) -> None:
    solver_native.refit_scale(*group.values(), num_threads)


def _copy(group: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in group.items()}


def _losses(group: dict[str, np.ndarray]) -> np.ndarray:
    errors = group["errors"].astype(np.float64)
    return ((group["hessian"].astype(np.float64) @ errors) * errors).sum(0)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 100])
def test_descend_block_equals_a_plain_loop(rows: int) -> None:
    group = _group(24, rows)
    start = _copy(group)
    hessian, scale = group["hessian"].astype(np.float64), group["scale"].astype(np.float64)
    gradient, codes = start["gradient"].astype(np.float64), start["codes"].astype(np.float64)
    zero = group["zero"]
    for j in range(24):
        best = np.rint(codes[j] - zero - gradient[j] / (hessian[j, j] * scale)) + zero
        step = scale * (np.clip(best, 0, 15) - codes[j])
        gain = -step * (2 * gradient[j] + hessian[j, j] * step)
        step[gain <= 1e-3 * hessian[j, j] * scale**2] = 0
        codes[j] += np.rint(step / scale)
        gradient += np.outer(hessian[:, j], step)
    _descend(group)
    rows_equal = (group["codes"] == codes).all(0)
    # A code within float32 rounding of a tie may go either way, and what follows it differs.
    assert rows_equal.mean() > 0.95
    # Sums of 24 products of about 100; float32 rounding of each step.
    np.testing.assert_allclose(group["gradient"][:, rows_equal], gradient[:, rows_equal], atol=1e-3)
    # The three that follow the codes: errors, gradient and gains say the same. Float32 sums.
    moved = scale * (group["codes"].astype(np.float64) - start["codes"])
    np.testing.assert_allclose(group["errors"], start["errors"] + moved, atol=1e-5)
    np.testing.assert_allclose(group["gains"], _losses(start) - _losses(group), rtol=1e-4)
    assert (group["gains"] > 0).all()


@pytest.mark.parametrize("columns", [1, 24, 130, 300])
@pytest.mark.parametrize("rows", [1, 33])
def test_refit_scale_equals_the_closed_form(columns: int, rows: int) -> None:
    group = _group(columns, rows)
    start = _copy(group)
    _refit(group)
    u = start["codes"] - start["zero"].astype(np.float64)
    hessian = start["hessian"].astype(np.float64)
    square = ((hessian @ u) * u).sum(0)
    slope = (start["gradient"].astype(np.float64) * u).sum(0)
    wanted = np.where(square > 0, start["scale"] - slope / np.maximum(square, 1e-300), 0)
    step = wanted.astype(np.float16).astype(np.float64) - start["scale"]
    falls = (square > 0) & (-step * (2 * slope + step * square) > 0)
    wanted = np.where(falls, wanted, start["scale"])
    # A float16 step is 2^-11 of a scale: float32 sums decide which of two neighbours.
    np.testing.assert_allclose(group["scale"], wanted, rtol=2.0**-10)
    assert np.array_equal(group["scale"], group["scale"].astype(np.float16))
    moved = u * (group["scale"] - start["scale"])
    np.testing.assert_allclose(group["errors"], start["errors"] + moved, atol=1e-5)
    # Float32 sums of up to 300^2 / 2 products.
    fell = _losses(start) - _losses(group)
    np.testing.assert_allclose(group["gains"], fell, atol=1e-4 * float(_losses(start).max()))
    assert np.array_equal(group["codes"], start["codes"])


@pytest.mark.parametrize("call", [_descend, _refit])
def test_refinement_does_not_depend_on_the_number_of_threads(call: Any) -> None:
    one, four = _group(64, 200), _group(64, 200)
    call(one, num_threads=1)
    call(four, num_threads=4)
    assert all(np.array_equal(one[name], four[name]) for name in one)


@pytest.mark.parametrize("call", [_descend, _refit])
def test_refinement_leaves_a_dead_column_and_a_row_of_zeros_alone(call: Any) -> None:
    group = _group(8, 5)
    for name in ("hessian", "gradient"):
        group[name][3] = 0
    group["hessian"][:, 3] = 0
    group["errors"][:, 4] = group["gradient"][:, 4] = 0
    group["codes"][:, 4] = group["zero"][4]
    start = _copy(group)
    call(group)
    assert np.array_equal(group["codes"][3], start["codes"][3])
    for name in ("codes", "errors", "gradient"):
        assert np.array_equal(group[name][:, 4], start[name][:, 4])
    assert group["scale"][4] == start["scale"][4] and group["gains"][4] == 0


@pytest.mark.parametrize("call", [_descend, _refit])
def test_refinement_ignores_gradients_that_are_not_finite(call: Any) -> None:
    group = _group(8, 5)
    group["gradient"][:, 2] = np.nan
    start = _copy(group)
    call(group)
    assert np.array_equal(group["codes"][:, 2], start["codes"][:, 2])
    assert group["scale"][2] == start["scale"][2]


@pytest.mark.parametrize("call", [_descend, _refit])
def test_the_hessian_may_be_a_corner_of_a_larger_one(call: Any) -> None:
    whole, part = _group(24, 8), _group(24, 8)
    larger = np.zeros((30, 40), np.float32)
    larger[3:27, 5:29] = part["hessian"]
    part["hessian"] = larger[3:27, 5:29]
    call(whole)
    call(part)
    assert np.array_equal(whole["codes"], part["codes"])
    assert np.array_equal(whole["scale"], part["scale"])


@pytest.mark.parametrize("call", [_descend, _refit])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient", np.zeros((24, 8), np.float64)),
        ("errors", np.zeros((23, 8), np.float32)),
        ("codes", np.zeros((24, 8), np.int8)),
        ("codes", np.zeros((24, 9), np.uint8)),
        ("hessian", np.zeros((24, 23), np.float32)),
        ("hessian", np.zeros((24, 24), np.float64)),
        ("hessian", np.zeros((24, 48), np.float32)[:, ::2]),
        ("scale", np.zeros(9, np.float32)),
        ("zero", np.zeros((8, 1), np.float32)),
        ("gains", np.zeros(8, np.float32)),
        ("gains", np.zeros(7)),
    ],
)
def test_refinement_refuses_arrays_that_do_not_fit(call: Any, name: str, value: np.ndarray) -> None:
    group = _group(24, 8)
    group[name] = value
    with pytest.raises(ShapeError):
        call(group)


def test_descend_block_refuses_sizes_out_of_range() -> None:
    with pytest.raises(KernelError, match="bcq_descend_block"):
        _descend(_group(solver_native.MAX_BLOCK + 1, 8))
    with pytest.raises(KernelError, match="bcq_descend_block"):
        _descend(_group(8, 8), max_code=256)


def test_refit_scale_refuses_a_group_that_is_too_wide() -> None:
    wide = 65537  # BCQ_MAX_GROUP + 1
    arrays = (np.zeros((wide, 1), np.float32), np.zeros((wide, 1), np.float32))
    row = np.zeros(1, np.float32)
    hessian = np.lib.stride_tricks.as_strided(
        np.zeros(wide, np.float32), (wide, wide), (4 * wide, 4)
    )
    with pytest.raises(KernelError, match="bcq_refit_scale"):
        solver_native.refit_scale(
            *arrays, np.zeros((wide, 1), np.uint8), hessian, row, row, np.zeros(1), 1
        )
