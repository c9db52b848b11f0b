"""bcquant.spec.presets: what --quality changes, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bcquant.errors import ConfigError
from bcquant.spec.presets import PRESETS, TUNE_STEPS, with_quality, with_tuning
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import Recipe
from bcquant.spec.tune_options import TuneOptions

RECIPE = Recipe(QuantFormat(3, 64), lm_head=True)


def test_the_default_is_the_recipe_itself() -> None:
    assert with_quality(RECIPE, "default") == RECIPE


def test_best_only_adds_tuning() -> None:
    best = with_quality(RECIPE, "best")
    assert best.tune.steps == TUNE_STEPS
    assert replace(best, tune=TuneOptions()) == RECIPE


def test_fast_tries_less_of_what_the_default_tries() -> None:
    fast = with_quality(RECIPE, "fast")
    assert set(fast.retarget_strengths) < set(RECIPE.retarget_strengths)
    assert fast.solve.refine_sweeps == 0
    assert fast.guard


def test_rates_of_tuning_grow_as_the_grid_gets_coarser() -> None:
    rates = [
        with_tuning(replace(RECIPE, format=QuantFormat(bits, 64)), 10).tune.scale_rate
        for bits in (8, 4, 3, 2)
    ]
    assert rates == sorted(rates)
    assert len(set(rates)) == 4


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(PRESETS)):
        with_quality(RECIPE, "fastest")
