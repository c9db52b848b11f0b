from __future__ import annotations

import numpy as np
import pytest

from bcquant.models.rotation import largest_hadamard, random_rotation


@pytest.mark.parametrize(
    "order", [1, 2, 4, 12, 16, 20, 28, 36, 48, 60, 64, 96, 128, 576, 896, 1536, 2048]
)
def test_known_orders_give_hadamard_matrices(order: int) -> None:
    """Sylvester, both constructions of Paley (12, 20, 60; 28, 36), and their doublings."""
    matrix, rest = largest_hadamard(order)
    assert rest == 1
    assert (np.abs(matrix) == 1).all()
    assert (matrix @ matrix.T == order * np.eye(order)).all()


@pytest.mark.parametrize(("size", "rest"), [(3, 3), (7, 7), (80, 1), (172, 43), (50, 25)])
def test_other_sizes_use_the_largest_order_that_divides_them(size: int, rest: int) -> None:
    assert largest_hadamard(size)[1] == rest


@pytest.mark.parametrize("size", [1, 2, 7, 16, 50, 172, 576])
def test_rotations_are_orthogonal_and_of_their_seed(size: int) -> None:
    first = random_rotation(size, np.random.default_rng(1))
    # float64 sums of `size` products of numbers below 1.
    np.testing.assert_allclose(first @ first.T, np.eye(size), atol=1e-13)
    assert (first == random_rotation(size, np.random.default_rng(1))).all()
    if size > 7:
        assert (first != random_rotation(size, np.random.default_rng(2))).any()


def test_one_large_channel_is_spread_over_all() -> None:
    spike = np.zeros(576)
    spike[17] = 100.0
    spread = spike @ random_rotation(576, np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(spread), 100.0 / 24.0, rtol=1e-12)  # 576 = 24 * 24
