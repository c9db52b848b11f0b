"""Seeded orthogonal matrices that spread outliers: Hadamard matrices with random signs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]


def random_rotation(size: int, rng: np.random.Generator) -> F64Array:
    """An orthogonal matrix whose entries are as equal in size as a known construction makes them.

    A Hadamard matrix over sqrt(size) with random column signs. Where none is constructed here, the
    Kronecker product of the largest one of a divisor and a random orthogonal matrix of the rest.

    Args:
        size: rows and columns, >= 1.
    Returns:
        R, shape (size, size), R R^T = 1.
    Source: Ashkboos et al. 2024, QuaRot (random Hadamard).
    """
    inner, rest = largest_hadamard(size)
    matrix = inner / np.sqrt(len(inner))
    if rest > 1:
        matrix = np.kron(_random_orthogonal(rest, rng), matrix)
    signs = rng.choice(np.array([-1.0, 1.0]), size)
    return np.asarray(matrix * signs, np.float64)


def largest_hadamard(size: int) -> tuple[F64Array, int]:
    """A Hadamard matrix of the largest order n that divides `size` and is known here, and size / n.

    Known: Sylvester's doubling of 1 and of Paley's two constructions over prime fields.
    """
    for order in sorted((n for n in range(1, size + 1) if size % n == 0), reverse=True):
        found = _hadamard(order)
        if found is not None:
            return found, size // order
    raise AssertionError("order 1 is known")


def _hadamard(order: int) -> F64Array | None:
    doublings, core = 0, order
    while True:
        base = np.ones((1, 1)) if core == 1 else _paley(core)
        if base is not None:
            break
        if core % 2:
            return None
        core, doublings = core // 2, doublings + 1
    for _ in range(doublings):
        base = np.block([[base, base], [base, -base]])
    return base


def _paley(order: int) -> F64Array | None:
    """Paley's matrix of this order over a prime field, None if there is none."""
    prime = order - 1
    if order % 4 == 0 and _is_prime(prime):  # prime % 4 == 3
        skew = _bordered(prime, -1.0)
        return skew + np.eye(order)
    prime = order // 2 - 1
    if order % 4 == 0 and prime % 4 == 1 and _is_prime(prime):
        symmetric = _bordered(prime, 1.0)
        plus, minus = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(symmetric, plus) + np.kron(np.eye(len(symmetric)), minus)
    return None


def _bordered(prime: int, sign: float) -> F64Array:
    """[[0, 1], [sign, Q]] with Q_ij = Legendre symbol of i - j: a conference matrix."""
    squares = {i * i % prime for i in range(1, prime)}
    symbol = np.array([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)])
    index = np.arange(prime)
    matrix = np.zeros((prime + 1, prime + 1))
    matrix[0, 1:], matrix[1:, 0] = 1.0, sign
    matrix[1:, 1:] = symbol[(index[:, None] - index[None, :]) % prime]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _random_orthogonal(size: int, rng: np.random.Generator) -> F64Array:
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diagonal(r)), np.float64)  # uniform on the group
