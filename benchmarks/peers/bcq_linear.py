"""bcquant's own linear layer: packed 4-bit weights, int8 activations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bcquant import __version__
from bcquant.kernels import native


class BcqLinear:
    """x @ W.T for every copy of W.

    Args:
        codes_NK: uint8, 0..15. scales_NG: float16.
        precision: a key of native.PRECISIONS.
    """

    def __init__(
        self,
        codes_NK: NDArray[np.uint8],
        scales_NG: NDArray[np.float16],
        copies: int,
        threads: int,
        precision: str = "int8",
    ) -> None:
        group_size = codes_NK.shape[1] // scales_NG.shape[1]
        self._context = native.context(threads)
        self._weights = [
            native.pack(codes_NK, scales_NG, None, 4, group_size) for _ in range(copies)
        ]
        self._precision = precision
        self.weight_bytes = codes_NK.size // 2 + scales_NG.size * 2

    def bind(self, x_MK: NDArray[np.float32]) -> None:
        """Use this input from now on; the output is allocated here."""
        self._x = x_MK
        self._y = np.zeros((len(x_MK), self._weights[0].out_features), np.float32)

    def run(self) -> None:
        """All copies, one after another."""
        for weight in self._weights:
            native.linear(self._context, [weight], self._x, [self._y], self._precision)

    def result(self) -> NDArray[np.float32]:
        """The output of the first copy, (M, N)."""
        native.linear(self._context, self._weights[:1], self._x, [self._y], self._precision)
        return self._y.copy()


def impl_version() -> str:
    """Version and the kernel tier that runs."""
    return f"bcquant {__version__}, tier {native.active_tier()}"
