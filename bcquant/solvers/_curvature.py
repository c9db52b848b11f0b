"""A Hessian made ready for solving: dead columns, order, damping, triangular factor."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bcquant.errors import SolverError

DAMP_GROWTH = 3.0
MAX_DAMP = 1.0


@dataclass(frozen=True)
class Curvature:
    """H = X^T X / n of a module's input, factored as H^-1 = U^T U.

    Attributes:
        diag_K: damped diagonal in the original column order.
        dead_K: bool, columns whose input was always zero; their weights are solved as 0.
        order_K: int64, the columns in the order in which they are visited.
        upper_KK: float32 U of the permuted, damped H; upper triangular, positive diagonal.
        damp_percent: the damping that made the factorisation succeed.
    """

    diag_K: torch.Tensor
    dead_K: torch.Tensor
    order_K: torch.Tensor
    upper_KK: torch.Tensor
    damp_percent: float

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.diag_K.shape[0])

    def inverse_weights_K(self) -> torch.Tensor:
        """1 / U_ii^2 in the original column order: the exact cost of an error in column i when
        the columns visited after it absorb it (Optimal Brain Surgeon)."""
        weights = torch.empty_like(self.diag_K)
        weights[self.order_K] = self.upper_KK.diagonal().pow(-2)
        return weights


def factorize(hessian_KK: torch.Tensor, damp_percent: float, act_order: bool) -> Curvature:
    """Factor a Hessian for the solvers.

    With J the reversal of the visiting order, J H J = L L^T gives H = R R^T for R = J L J, and
    U = R^-1: one Cholesky and one triangular inverse instead of Cholesky, inverse, Cholesky.
    A factorisation that fails is tried again with three times the damping.

    Args:
        hessian_KK: float32, symmetric, shape (K, K); not modified.
        damp_percent: share of the mean live diagonal added to the diagonal.
        act_order: visit columns by descending diagonal; else in file order.
    Raises:
        SolverError: the Hessian has a non-finite entry, or no damping up to 100 % of the mean
            diagonal makes it positive definite.
    Source: QUANT.md section 3; the order is the GPTQ authors' "act-order" with static groups.
    """
    diag_K = hessian_KK.diagonal().clone()
    if not bool(torch.isfinite(diag_K).all()):
        raise SolverError("the Hessian has a non-finite diagonal; the activations overflowed")
    dead_K = diag_K <= 0
    live = diag_K[~dead_K]
    mean = float(live.mean()) if live.numel() else 1.0
    diag_K[dead_K] = mean
    order_K = torch.arange(len(diag_K))
    if act_order:
        order_K = torch.argsort(diag_K, descending=True, stable=True)
    reversed_K = order_K.flip(0)
    damp = damp_percent
    while damp <= MAX_DAMP:
        permuted = hessian_KK[reversed_K[:, None], reversed_K[None, :]]
        permuted.diagonal().copy_(diag_K[reversed_K] + damp * mean)
        lower, info = torch.linalg.cholesky_ex(permuted)
        del permuted
        if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
            upper = _inverse_lower(lower).flip(0, 1)
            if bool(torch.isfinite(upper.diagonal()).all()):
                return Curvature(diag_K + damp * mean, dead_K, order_K, upper, damp)
        damp *= DAMP_GROWTH
    raise SolverError(
        "the Hessian is not positive definite, even with damping of "
        f"{MAX_DAMP:.0%} of its mean diagonal"
    )


def _inverse_lower(lower_KK: torch.Tensor, block: int = 2048) -> torch.Tensor:
    """Inverse of a lower triangular matrix, in place, a block row at a time.

    Block row i of the inverse is -L_ii^-1 (L_i,<i  Inv_<i) beside L_ii^-1, so only a block row is
    ever allocated beside the matrix itself (LAPACK trtri needs an identity of full size in torch).
    """
    size = lower_KK.shape[0]
    for start in range(0, size, block):
        stop = min(start + block, size)
        eye = torch.eye(stop - start, dtype=lower_KK.dtype)
        corner = torch.linalg.solve_triangular(lower_KK[start:stop, start:stop], eye, upper=False)
        if start:
            left = lower_KK[start:stop, :start] @ lower_KK[:start, :start]
            torch.mm(corner, left, out=lower_KK[start:stop, :start]).neg_()
        lower_KK[start:stop, start:stop] = corner
    return lower_KK
