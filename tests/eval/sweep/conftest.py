"""A tiny float model and rows of a made-up sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint

from bcquant.eval.sweep.rows import Row


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hidden 64, inner 96 or so: every Linear's row is a multiple of 32."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_checkpoint("llama", folder, intermediate_size=128)


@pytest.fixture
def made_up() -> list[Row]:
    points = [
        ("bcquant", "a", 4.25, 5.0), ("hqq", "b", 4.5, 9.0), ("llama_cpp", "c", 5.5, 1.0),
        ("bcquant", "d", 8.25, -0.02), ("hqq", "e", 3.5, None),
    ]  # fmt: skip
    rows = [_row(*point) for point in points]
    missing = Row("gptqmodel", "f", {}, {}, problem="not installed: no gptqmodel")
    return [*rows, missing]


def _row(tool: str, label: str, size: float, increase: float | None) -> Row:
    figures: dict[str, Any] = {
        "perplexity_float": 10.0, "increase_percent": increase, "kl_mean": 0.1,
        "perplexity_quantized": None if increase is None else 10.0 * (1 + increase / 100),
        "top1_agreement": 0.9, "tokens": 100.0,
    }  # fmt: skip
    return Row(tool, label, {}, {}, {"en": figures}, size, 100.0, seconds=1.0)
