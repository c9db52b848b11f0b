"""The exact choice under a limit, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bcquant.errors import ConfigError
from bcquant.pipeline import knapsack
from bcquant.pipeline.knapsack import cheapest_choices


def cost_of(rows: list[list[float]], chosen: tuple[int, ...]) -> float:
    return sum(row[i] for row, i in zip(rows, chosen, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_nothing_cheaper_keeps_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.exponential(size=(6, 4)).tolist()
    sizes = rng.integers(0, 40, (6, 4)).tolist()
    limit = sum(min(row) for row in sizes) + int(rng.integers(0, 60))
    chosen = tuple(cheapest_choices(costs, sizes, limit))
    assert cost_of(sizes, chosen) <= limit
    allowed = [c for c in itertools.product(range(4), repeat=6) if cost_of(sizes, c) <= limit]
    # Both are sums of the same float64 numbers in one order.
    assert cost_of(costs, chosen) == pytest.approx(min(cost_of(costs, c) for c in allowed))


def test_sizes_finer_than_the_steps_keep_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MAX_STEPS", 50)
    rng = np.random.default_rng(0)
    sizes = np.cumsum(rng.integers(1, 10**9, (8, 3)), axis=1).tolist()
    costs = (-np.cumsum(rng.exponential(size=(8, 3)), axis=1) + 100).tolist()
    smallest, largest = (sum(f(row) for row in sizes) for f in (min, max))
    limit = (smallest + largest) // 2
    used = cost_of(sizes, tuple(cheapest_choices(costs, sizes, limit)))
    # Each of 8 items wastes less than a step of a 50th of what the limit leaves.
    assert limit - 8 / 50 * (limit - smallest) - max(map(max, sizes)) <= used <= limit


def test_largest_choices_fit_under_a_generous_limit() -> None:
    assert cheapest_choices([[3.0, 1.0], [5.0, 2.0]], [[1, 7], [1, 9]], 10**15) == [1, 1]


def test_equal_costs_take_the_earlier_choice() -> None:
    assert cheapest_choices([[1.0, 1.0]], [[4, 8]], 100) == [0]


def test_limit_below_the_smallest_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 is the smallest"):
        cheapest_choices([[1.0, 0.0], [1.0, 0.0]], [[2, 9], [3, 9]], 4)
