"""Interleaved timing: every implementation runs in every round, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

SETTLE_S = 0.1  # the threads of the one before may spin after its last call


@dataclass
class Contestant:
    """One implementation of one operation.

    Attributes:
        name: unique among those that are compared.
        run: does the operation `units` times over, and returns the seconds that took if it timed
            itself, else None.
        units: operations of one `run`, as a rule one for each copy of the weights.
        samples: seconds of one operation, a sample a run.
    """

    name: str
    run: Callable[[], float | None]
    units: int = 1
    samples: list[float] = field(default_factory=list)

    @property
    def median_us(self) -> float:
        """Median over the samples."""
        return median(self.samples) * 1e6

    def sample(self) -> float:
        """Seconds of one operation, from one run."""
        start = time.perf_counter()
        own = self.run()
        stop = time.perf_counter()
        return (stop - start if own is None else own) / self.units


def interleave(contestants: Sequence[Contestant], repeat: int, burst_s: float = 0.05) -> None:
    """Fill `samples`: `repeat` rounds, in each a burst of runs of every implementation.

    The first run of a burst wakes the threads and is not counted. A burst is one run, or as many
    as fit into `burst_s`. Every other round goes backwards, so that nobody always follows the same.
    """
    order = list(contestants)
    for _ in range(repeat):
        for contestant in order:
            time.sleep(SETTLE_S)
            first = contestant.sample() * contestant.units
            runs = max(1, min(1000, int(burst_s / max(first, 1e-7))))
            contestant.samples += [contestant.sample() for _ in range(runs)]
        order.reverse()
