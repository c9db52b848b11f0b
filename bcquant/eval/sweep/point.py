"""What a sweep is made of: the wish, its points, and what a tool makes of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant import registry

if TYPE_CHECKING:
    from bcquant.eval.sweep.inputs import Inputs

TOOLS = "bcquant.eval.sweep.tools"
OURS = "bcquant"
Settings = dict[str, Any]
RunChild = Callable[[str, Settings], dict[str, Any]]


@dataclass(frozen=True)
class Wish:
    """What was asked for; each tool takes from it what it can do.

    Attributes:
        schemes: of `recipes.SCHEMES`.
        qualities: presets of bcquant's own recipes, of `recipes.QUALITIES`.
        target_bpw: stored bits a weight that bcquant allocates over the modules.
    """

    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    schemes: tuple[str, ...]
    qualities: tuple[str, ...]
    target_bpw: tuple[float, ...] = ()

    def grids(self) -> list[tuple[int, int, bool]]:
        """(bits, group_size, symmetric) of every weight-only grid that was asked for."""
        return list(itertools.product(self.bits, self.group_sizes, self._kinds()))

    def targets(self) -> list[tuple[float, int, bool]]:
        """(stored bits a weight, group_size, symmetric) of every allocation asked for."""
        return list(itertools.product(self.target_bpw, self.group_sizes, self._kinds()))

    def _kinds(self) -> list[bool]:
        return [scheme == "sym" for scheme in self.schemes if scheme in ("sym", "asym")]


@dataclass(frozen=True)
class Point:
    """One model to make and judge.

    Attributes:
        tool: key of its tool.
        label: unique among the tool's points, e.g. "4-bit g64 sym".
        settings: plain values, all that tells it from the tool's other points.
    """

    tool: str
    label: str
    settings: Settings

    @property
    def name(self) -> str:
        """Tool and label."""
        return f"{self.tool} {self.label}"


@dataclass(frozen=True)
class Speed:
    """Tokens per second, median over rounds."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Made:
    """A quantized model, and what making it took.

    Attributes:
        model: folder or file that `open_model` takes.
        decoder_bits: stored bits of the decoder's matrices, scales and zeros included; None = as
            `sizes.decoder_bits` reads them from `model`.
        stored_bytes: of all weights as the tool stores them; None = the files of `model`.
        seconds: quantization, imports left out.
        peak_mb: largest resident memory of the process that did it, MiB; None = not known.
        speed: measures the tool's own runtime on it; None = there is none here.
    """

    model: Path
    decoder_bits: float | None
    stored_bytes: int | None
    seconds: float
    peak_mb: float | None
    speed: Callable[[], Speed] | None = None


@dataclass(frozen=True)
class MakeJob:
    """What a tool gets to make a point.

    Attributes:
        folder: exists; empty unless the tool resumes.
        run: (child, job) -> what the child said; see `process.run_child`.
        python: interpreter of the tool.
        threads: for measuring speed.
    """

    settings: Settings
    inputs: Inputs
    folder: Path
    run: RunChild
    python: Path
    threads: int


@dataclass(frozen=True)
class Tool:
    """What a file of `bcquant.eval.sweep.tools` exports as TOOL.

    Attributes:
        key: the file's name.
        distributions: packages that its interpreter must have; their versions go into the rows.
        children: files of `bcquant.eval.sweep.children` that it runs.
        points: the (label, settings) that it offers for a wish.
        make: does one of them; raises BcquantError.
        resumes: a folder that an interrupted `make` left is used again.
        identity: what else its results depend on.
    """

    key: str
    distributions: tuple[str, ...]
    children: tuple[str, ...]
    points: Callable[[Wish], list[tuple[str, Settings]]]
    make: Callable[[MakeJob], Made]
    resumes: bool = False
    identity: Callable[[], Settings] = dict


def tool_names() -> list[str]:
    """Every tool, ours first, then the peers by name."""
    return sorted(registry.names(TOOLS), key=lambda name: (name != OURS, name))


def find_tool(key: str) -> Tool:
    """The tool whose file is called `key`. ConfigError: there is none."""
    tool: Tool = registry.load(TOOLS, key, "TOOL")
    return tool


def grid_label(bits: int, group_size: int, symmetric: bool | None = None) -> str:
    """ "4-bit g64 sym"; without the last word where the tool has one kind of grid."""
    ending = "" if symmetric is None else " sym" if symmetric else " asym"
    return f"{bits}-bit {'row' if group_size == -1 else f'g{group_size}'}{ending}"
