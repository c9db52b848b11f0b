"""From a point's settings to the recipe that makes it: the only place where presets are known."""

from __future__ import annotations

from typing import Any

from bcquant.errors import ConfigError
from bcquant.spec.presets import PRESETS, with_quality
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe

SCHEMES = ("sym", "asym", "w8a16", "w8a8")
QUALITIES = tuple(PRESETS)


def recipe_of(settings: dict[str, Any], calib: CalibOptions) -> Recipe:
    """The recipe of one of bcquant's points.

    Args:
        settings: scheme (of `SCHEMES`), bits, group_size, quality (of `QUALITIES`).
    Raises:
        ConfigError: a scheme or a quality that there is not, or a format that there is not.
    """
    scheme, quality = settings["scheme"], settings["quality"]
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme {scheme!r} is unknown; one of {', '.join(SCHEMES)} is needed")
    if scheme in ("w8a16", "w8a8"):
        activation = "int8_token" if scheme == "w8a8" else "none"
        fmt = QuantFormat(8, -1, True, activation)
    else:
        fmt = QuantFormat(settings["bits"], settings["group_size"], scheme == "sym")
    # 3 bits and W8A8 have no GPTQ layout everywhere; compressed-tensors holds every format.
    return with_quality(Recipe(format=fmt, calib=calib, output="compressed-tensors"), quality)
