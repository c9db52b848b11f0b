from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_run import run_export
from factory import make_tiny
from tiny_quantized import quantized_folder

from bcquant.exporters.mobile import EXPORTER
from bcquant.exporters.mobile.options import MobileOptions
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

# Six heads of 16: the kernels need multiples of 16.
_WIDE = {"baichuan13b": {"hidden_size": 96}, "baichuan2_13b": {"hidden_size": 96}}


@pytest.fixture(scope="session")
def export() -> Callable[..., ExportPlan]:
    """Plan, validate and write `source` as `out`; the validated plan."""

    def run(source: Path, out: Path, **options: Any) -> ExportPlan:
        return run_export(EXPORTER, source, out, MobileOptions(**options))

    return run


@pytest.fixture(scope="session")
def make_float() -> Callable[..., Path]:
    """A tiny float checkpoint without a tokenizer."""

    def make(folder: Path, family: str = "llama", dtype: str = "F16", **over: Any) -> Path:
        return make_tiny(family, folder, dtype, **{**_WIDE.get(family, {}), **over})

    return make


@pytest.fixture(scope="session")
def make_quantized() -> Callable[..., Path]:
    """The same with its blocks rounded to nearest and stored as GPTQ v1 or otherwise."""

    def make(
        folder: Path,
        fmt: QuantFormat = QuantFormat(4, 32),  # noqa: B008 - a frozen value
        target: str = "v1",
        family: str = "llama",
        **over: Any,
    ) -> Path:
        over = {**_WIDE.get(family, {}), **over}
        return quantized_folder(folder, target, fmt, family, **over)

    return make
