"""What would compute on this machine: the kernel tier, and the engine of `bcquant generate`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bcquant.errors import BcquantError, KernelError


class KernelFacts(NamedTuple):
    """The compiled kernels.

    Attributes:
        tier: that runs; None where none does.
        tiers: of this build, best first, also those that this CPU lacks.
        problem: why none runs, None if one does.
    """

    tier: str | None
    tiers: tuple[str, ...]
    problem: str | None

    def describe(self) -> str:
        """One line."""
        built = f"this build has {', '.join(self.tiers)}" if self.tiers else ""
        if self.tier is None:
            return f"none: {self.problem}"
        return f"tier {self.tier} ({built})"


def kernel_facts() -> KernelFacts:
    """Which tier runs, found out by asking for it."""
    try:
        from bcquant.kernels import native
    except KernelError as error:
        return KernelFacts(None, (), str(error))
    try:
        return KernelFacts(native.active_tier(), native.tiers(), None)
    except KernelError as error:  # BCQ_FORCE_TIER names one that is not here
        return KernelFacts(None, native.tiers(), str(error))


def engine_of(path: Path, problem: str | None) -> str:
    """The engine of `bcquant generate` on a checkpoint, in words.

    Args:
        problem: why bcquant cannot use the model at all, None when it can.
    """
    from bcquant.models.source import open_model
    from bcquant.runtime.engine_choice import why_torch

    if problem is not None:
        return "none, see below"
    try:
        with open_model(path) as source:
            reason = why_torch(source, "auto")
    except BcquantError as error:
        return f"none: {error}"
    return "native engine" if reason is None else f"torch engine ({reason})"
