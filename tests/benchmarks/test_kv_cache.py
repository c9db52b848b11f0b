"""The figures of bench_kv_cache."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the package

from benchmarks.bench_kv_cache import figures, targets  # noqa: E402


def test_figures_of_two_windows() -> None:
    reference = np.array([200.0, 300.0])
    found = figures(reference + np.array([0.2, 0.4]), reference, 202)
    assert found["tokens"] == 200
    assert found["perplexity"] == pytest.approx(math.exp(500.6 / 200), abs=1e-4)
    assert found["increase_percent"] == pytest.approx(0.3004, abs=1e-4)
    # The gaps deviate by 0.1414 a window; of their sum over 200 tokens that is 0.1 %.
    assert found["error_percent"] == pytest.approx(0.1, abs=1e-4)


def test_the_target_is_missed_where_int8_costs_more() -> None:
    rows = [{"cache": "f16", "increase_percent": 9.0}, {"cache": "int8", "increase_percent": 0.2}]
    assert str(targets(rows)[0]).startswith("MISSED")
    assert str(targets(rows[:1])[0]).startswith("not measured")
    assert str(targets([{"cache": "int8", "increase_percent": -0.01}])[0]).startswith("holds")
