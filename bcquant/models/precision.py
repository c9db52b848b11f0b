"""Float32 matrix products through whichever library is fast and still exact on this CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

# float32 rounding gives about 4e-7 here, bfloat16 products 2e-3.
EXACT_ERROR = 2e-6


@contextmanager
def fast_float32() -> Iterator[None]:
    """Let oneDNN compute float32 products inside, if it does so without rounding the inputs.

    torch sends float32 products to MKL, which stays well below the peak of an AMD core. At
    precision "medium" it asks oneDNN, which computes true float32 on a CPU without matrix units
    (measured on an EPYC 9005: 190-410 instead of 75-180 GFLOP/s, the same error). Where oneDNN
    would round to bfloat16 (AMX), nothing is changed.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if _is_exact() else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _is_exact() -> bool:
    """Whether a product at precision "medium" is as exact as float32 rounding allows."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 576, generator=generator)
    b = torch.randn(576, 256, generator=generator)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    product = a @ b
    torch.set_float32_matmul_precision(before)
    wanted = a.double() @ b.double()
    return float((product - wanted).norm() / wanted.norm()) < EXACT_ERROR
