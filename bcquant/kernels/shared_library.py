"""Compiled libraries with a C interface, loaded through ctypes from where they were installed."""

from __future__ import annotations

import ctypes
import importlib.util

from bcquant.errors import KernelError


def load_library(module: str) -> ctypes.CDLL:
    """Load a library by the name that setup.py builds it under.

    Raises:
        KernelError: it is not built.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise KernelError(
            f"{module}: not built; install bcquant with a C++17 compiler at hand (pip install .)"
        )
    return ctypes.CDLL(spec.origin)
