"""The perplexity-versus-size plot."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcquant.errors import ConfigError
from bcquant.eval.sweep.front import judged, pareto_front
from bcquant.eval.sweep.rows import Row

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINEAR_BELOW = 0.1  # percent; below it, and for what improves, the axis is linear


def require_matplotlib() -> None:
    """Complain before hours of measuring, not after.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the plot needs matplotlib, which is not installed; pip install 'bcquant[bench]', or "
            "give --no-plot"
        ) from error


def write_plot(stem: Path, rows: Sequence[Row], texts: Sequence[str], title: str) -> list[Path]:
    """Write `stem`.png and `stem`.svg: a panel a text, a marker a tool, the front as a line.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    require_matplotlib()
    matplotlib: Any = importlib.import_module("matplotlib")
    figure_type: Any = importlib.import_module("matplotlib.figure").Figure
    # Text stays text in the SVG, so no font is copied into it; ids do not change between runs.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bcquant"}):
        figure = figure_type(figsize=(7.0 * len(texts), 5.5), layout="constrained")
        figure.suptitle(title)
        tools = list(dict.fromkeys(row.tool for row in rows))
        for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
            _panel(axes, rows, text, tools)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=150, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def _panel(axes: Any, rows: Sequence[Row], text: str, tools: list[str]) -> None:
    front = pareto_front(rows, text)
    sizes = [row.bits_per_weight for row in front]
    heights = [row.increase(text) for row in front]
    axes.plot(sizes, heights, color="0.6", linewidth=1.0, zorder=1, label="Pareto front")
    for tool, marker in zip(tools, itertools.cycle(_MARKERS), strict=False):
        mine = [row for row in judged(rows, text) if row.tool == tool]
        if mine:
            axes.scatter(
                [row.bits_per_weight for row in mine], [row.increase(text) for row in mine],
                marker=marker, s=36, label=tool, zorder=3 if tool == "bcquant" else 2,
            )  # fmt: skip
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    # Ticks at 1, 2 and 5 of every decade, as plain numbers: a panel may span less than one decade.
    ticker: Any = importlib.import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(
        ticker.SymmetricalLogLocator(base=10, linthresh=_LINEAR_BELOW, subs=(1.0, 2.0, 5.0))
    )
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_title(text)
    axes.set_xlabel("bits per decoder weight, scales and zeros included")
    axes.set_ylabel("perplexity over the float model, %")
    axes.grid(True, which="both", color="0.9", linewidth=0.6)
    axes.legend(fontsize="small")
