"""What a file of this package exports, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import OnnxFacts

Subject = Facts | OnnxFacts


@dataclass(frozen=True)
class Export:
    """An export that a program could load: the exporter's key and flags, as typed."""

    exporter: str
    flags: tuple[str, ...] = ()

    def command(self, model: str) -> str:
        """The command line."""
        return " ".join(["bcquant export", self.exporter, model, *self.flags])


@dataclass(frozen=True)
class Outlook:
    """What an exporter said about a checkpoint, from its plan.

    Attributes:
        refusals: why it cannot write it; empty = it can.
        changes_weights: some tensors would not be carried over exactly.
    """

    refusals: tuple[str, ...] = ()
    changes_weights: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether one program loads the files as they lie: "yes", "no" or "unknown", and why.

    Attributes:
        needs: what must be installed or passed for a yes; "" if nothing beside the program.
        is_tested: this project's tests load such a file with the program.
    """

    loader: str
    loads: str
    reason: str
    needs: str = ""
    is_tested: bool = False


@dataclass(frozen=True)
class Loader:
    """One program; the file `bcquant/loaders/KEY.py` exports it as `LOADER`.

    Attributes:
        name: as its makers spell it.
        checked_with: the version whose rules were read or tested.
        judge: the verdict on a model as it lies.
        export: what `bcquant export` would have to write for it, None where it writes nothing for
            this program.
        judge_export: the verdict on that export of a checkpoint that bcquant can open.
    """

    name: str
    checked_with: str
    judge: Callable[[Subject], Verdict]
    export: Export | None = None
    judge_export: Callable[[Facts], Verdict] | None = None
