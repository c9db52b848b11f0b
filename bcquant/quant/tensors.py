"""The canonical quantized weight: every file format and kernel layout is a pure function of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcquant.errors import ShapeError
from bcquant.spec.quant_format import QuantFormat

U8Array = npt.NDArray[np.uint8]
F16Array = npt.NDArray[np.float16]
F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes, scales and zeros of one Linear weight.

    Attributes:
        codes_NK: uint8, shape (N, K), each 0 .. 2^bits - 1.
        scales_NG: float16, shape (N, G), finite, any sign.
        zeros_NG: uint8, shape (N, G), as used in the formula (never "minus one").
        format: what the numbers mean. W[n,k] = scales[n,k//g] * (codes[n,k] - zeros[n,k//g]).
    Raises:
        ShapeError: shapes, dtypes or ranges disagree with the format.
    """

    codes_NK: U8Array
    scales_NG: F16Array
    zeros_NG: U8Array
    format: QuantFormat

    def __post_init__(self) -> None:
        n, k = self.codes_NK.shape if self.codes_NK.ndim == 2 else (0, 0)
        if n == 0 or k == 0:
            raise ShapeError(
                f"codes have shape {self.codes_NK.shape}; (N, K) with N, K > 0 is needed"
            )
        want = (n, self.format.num_groups(k))
        for name, array, dtype in (
            ("scales", self.scales_NG, np.float16),
            ("zeros", self.zeros_NG, np.uint8),
        ):
            if array.shape != want or array.dtype != dtype:
                raise ShapeError(
                    f"{name} are {array.dtype}{list(array.shape)}; "
                    f"{np.dtype(dtype)}{list(want)} is needed for codes {[n, k]}"
                )
        if self.codes_NK.dtype != np.uint8:
            raise ShapeError(f"codes are {self.codes_NK.dtype}; uint8 is needed")
        top = self.format.max_code
        if self.format.bits < 8 and int(self.codes_NK.max()) > top:
            raise ShapeError(
                f"a code is {int(self.codes_NK.max())}; {self.format.bits} bits hold 0..{top}"
            )
        if int(self.zeros_NG.max()) > top:
            raise ShapeError(
                f"a zero is {int(self.zeros_NG.max())}; {self.format.bits} bits hold 0..{top}"
            )
        if self.format.symmetric and bool((self.zeros_NG != self.format.symmetric_zero).any()):
            raise ShapeError(
                f"a symmetric format has a zero other than {self.format.symmetric_zero}"
            )
        if not bool(np.isfinite(self.scales_NG).all()):
            raise ShapeError("a scale is not finite in float16")

    @property
    def out_features(self) -> int:
        """N."""
        return int(self.codes_NK.shape[0])

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.codes_NK.shape[1])
