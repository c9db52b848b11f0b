"""The C++ inner loops against plain numpy loops, and their refusals."""

from __future__ import annotations

import importlib.util

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
