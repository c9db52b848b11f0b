"""bcquant.solvers._curvature: damping, order and the triangular factor."""

from __future__ import annotations

import pytest
import torch
from random_layer import hessian_of, random_inputs

from bcquant.errors import SolverError
from bcquant.solvers import _curvature
from bcquant.solvers._curvature import MAX_DAMP, Curvature, factorize


def damped(hessian: torch.Tensor, curvature: Curvature) -> torch.Tensor:
    """The matrix that was factored, float64, in visiting order."""
    full = hessian.double().clone()
    full.diagonal().copy_(curvature.diag_K.double())
    return full[curvature.order_K[:, None], curvature.order_K[None, :]]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("k", [1, 2, 17, 130])
def test_factor_is_the_root_of_the_inverse(k: int, act_order: bool) -> None:
    hessian = hessian_of(random_inputs(4 * k, k))
    curvature = factorize(hessian, 0.01, act_order)
    upper = curvature.upper_KK.double()
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    wanted = damped(hessian, curvature)
    inverse = torch.linalg.inv(wanted)
    # A float32 Cholesky is backward stable: its inverse is off by cond(H) 2^-24 times a small
    # multiple of K; 10 covers the sizes above with room.
    bound = 10 * float(torch.linalg.cond(wanted)) * 2.0**-24
    error = (upper.T @ upper - inverse).norm() / inverse.norm()
    assert error < bound
    assert bound < 0.05  # the bound says something


def test_the_hessian_is_not_written_to() -> None:
    hessian = hessian_of(random_inputs(64, 16))
    hessian[3] = hessian[:, 3] = 0
    before = hessian.clone()
    factorize(hessian, 0.01, True)
    assert torch.equal(hessian, before)


@pytest.mark.parametrize("block", [1, 7, 32, 96, 200])
def test_blockwise_triangular_inverse_equals_float64(block: int) -> None:
    lower = torch.linalg.cholesky(hessian_of(random_inputs(400, 96, spread=0.3)))
    wanted = torch.linalg.inv(lower.double())
    found = _curvature._inverse_lower(lower.clone(), block)
    # cond(L) is about 30 here; float32 rounding times it is 2e-6.
    torch.testing.assert_close(
        found.double(), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0
    )


def test_triangular_inverse_of_more_than_one_default_block() -> None:
    size = 2048 + 65
    generator = torch.Generator().manual_seed(0)
    lower = (torch.randn(size, size, generator=generator) / size).tril(-1) + torch.eye(size)
    inverse = _curvature._inverse_lower(lower.clone())
    probe = torch.randn(size, 8, generator=generator)
    # Nearly the identity, so rounding is of the order of 2^-24 sqrt(K).
    torch.testing.assert_close(lower @ (inverse @ probe), probe, atol=2e-5, rtol=0)


def test_act_order_visits_columns_by_descending_diagonal_ties_in_file_order() -> None:
    hessian = torch.diag(torch.tensor([2.0, 5.0, 2.0, 9.0, 5.0]))
    assert factorize(hessian, 0.01, True).order_K.tolist() == [3, 1, 4, 0, 2]
    assert factorize(hessian, 0.01, False).order_K.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("act_order", [False, True])
def test_inverse_weights_are_in_file_order(act_order: bool) -> None:
    values = torch.tensor([2.0, 5.0, 1.0, 9.0])
    curvature = factorize(torch.diag(values), 0.01, act_order)
    # A diagonal H: 1 / U_ii^2 is the damped diagonal itself. Float32: 3 roundings.
    torch.testing.assert_close(curvature.inverse_weights_K(), values + 0.01 * values.mean())
    torch.testing.assert_close(curvature.inverse_weights_K(), curvature.diag_K)


def test_dead_columns_are_named_and_leave_the_others_alone() -> None:
    inputs = random_inputs(200, 24)
    inputs[:, [0, 7, 23]] = 0
    curvature = factorize(hessian_of(inputs), 0.01, False)
    assert curvature.dead_K.nonzero().flatten().tolist() == [0, 7, 23]
    live = ~curvature.dead_K
    alone = factorize(hessian_of(inputs[:, live]), 0.01, False)
    # The same numbers with zeros between them; products may be summed in another order.
    torch.testing.assert_close(
        curvature.upper_KK[live][:, live], alone.upper_KK, atol=0, rtol=1e-4, equal_nan=False
    )
    assert (curvature.upper_KK[curvature.dead_K][:, live] == 0).all()


def test_an_input_that_is_always_zero_gives_the_identity() -> None:
    curvature = factorize(torch.zeros(8, 8), 0.01, True)
    assert curvature.dead_K.all()
    torch.testing.assert_close(curvature.upper_KK, torch.eye(8) / 1.01**0.5)


def test_damping_that_is_enough_is_kept() -> None:
    assert factorize(hessian_of(random_inputs(64, 16)), 0.01, True).damp_percent == 0.01


def test_singular_hessian_raises_the_damping_and_says_so() -> None:
    hessian = hessian_of(random_inputs(3, 64))  # rank 3 of 64
    curvature = factorize(hessian, 1e-9, True)
    assert 1e-9 < curvature.damp_percent <= MAX_DAMP
    assert torch.isfinite(curvature.upper_KK).all()
    mean = hessian.diagonal().mean()
    torch.testing.assert_close(curvature.diag_K, hessian.diagonal() + curvature.damp_percent * mean)


def test_indefinite_hessian_gets_the_first_damping_that_helps() -> None:
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])  # smallest eigenvalue -0.05
    assert factorize(hessian, 0.01, False).damp_percent == pytest.approx(0.09)


def test_hessian_that_no_damping_saves_is_refused() -> None:
    with pytest.raises(SolverError, match="not positive definite"):
        factorize(torch.tensor([[1.0, 3.0], [3.0, 1.0]]), 0.01, False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [(1, 1), (2, 1)])
def test_non_finite_hessian_is_refused(value: float, at: tuple[int, int]) -> None:
    hessian = torch.eye(4)
    hessian[at] = hessian[at[::-1]] = value
    with pytest.raises(SolverError):
        factorize(hessian, 0.01, True)
