"""`--quality`: how much work a run puts into the same format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bcquant.errors import ConfigError
from bcquant.spec.recipe import Recipe
from bcquant.spec.tune_options import TuneOptions

TUNE_STEPS = 56  # four rounds over the default's 14 batches of train tokens
# Measured on SmolLM2: 2e-4 lowers the held-out KL at 4 bits and 5e-4 raises it; 2e-3 suits 2 bits.
TUNE_RATE_4_BITS, TUNE_RATE_GROWTH = 2e-4, 10**0.5


def _fast(recipe: Recipe) -> Recipe:
    """Searched scales, error feedback, one strength of retargeting, the guard; no refinement."""
    return replace(recipe, retarget_strengths=(0.5,), solve=replace(recipe.solve, refine_sweeps=0))


def _best(recipe: Recipe) -> Recipe:
    """All of the default, then scales and norms tuned by KL to the float model."""
    return with_tuning(recipe, TUNE_STEPS)


PRESETS: dict[str, Callable[[Recipe], Recipe]] = {
    "fast": _fast,
    "default": lambda recipe: recipe,
    "best": _best,
}


def with_tuning(recipe: Recipe, steps: int) -> Recipe:
    """`recipe` with that many steps of tuning, at rates that suit its bits."""
    rate = TUNE_RATE_4_BITS * TUNE_RATE_GROWTH ** (4 - recipe.format.bits)
    options = TuneOptions(steps, scale_rate=rate, float_rate=rate, seed=recipe.calib.seed)
    return replace(recipe, tune=options)


def with_quality(recipe: Recipe, quality: str) -> Recipe:
    """`recipe`, which has the default's settings, as a preset has them.

    Raises:
        ConfigError: there is no such preset.
    """
    if quality not in PRESETS:
        raise ConfigError(f"--quality is {quality!r}; one of {', '.join(PRESETS)} is needed")
    return PRESETS[quality](recipe)
