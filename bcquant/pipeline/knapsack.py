"""One choice per item at the least cost under a size limit: exact, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bcquant.errors import ConfigError

MAX_STEPS = 1 << 17  # sizes the limit is cut into where their common divisor is finer


def cheapest_choices(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], limit: int
) -> list[int]:
    """Which choice to take for every item.

    Sizes above each item's smallest are counted in steps of their greatest common divisor, or
    where that is too fine in 1/131072 of what the limit leaves, rounded up: then each item may
    waste up to a step and the sum still keeps the limit.

    Args:
        costs: per item and choice, finite, >= 0.
        sizes: per item and choice, >= 0.
    Returns:
        per item the index of its choice; among equal costs the earlier one.
    Raises:
        ConfigError: the smallest choices together exceed the limit.
    """
    floor_sizes = [min(row) for row in sizes]
    room = limit - sum(floor_sizes)
    if room < 0:
        raise ConfigError(f"a size of {limit} was asked for; {sum(floor_sizes)} is the smallest")
    extra = [[size - least for size in row] for row, least in zip(sizes, floor_sizes, strict=True)]
    room = min(room, sum(max(row) for row in extra))
    common = math.gcd(*(size for row in extra for size in row))
    unit = max(common, -(-room // MAX_STEPS), 1)
    steps = room // unit
    best = np.zeros(steps + 1)
    taken = np.zeros((len(costs), steps + 1), np.uint8)
    for item, (cost_row, extra_row) in enumerate(zip(costs, extra, strict=True)):
        found = np.full(steps + 1, np.inf)
        for choice, (cost, size) in enumerate(zip(cost_row, extra_row, strict=True)):
            used = -(-size // unit)
            if used > steps:
                continue
            total = best[: steps + 1 - used] + cost
            is_better = total < found[used:]
            found[used:][is_better] = total[is_better]
            taken[item, used:][is_better] = choice
        best = found
    chosen, left = [], steps
    for item in reversed(range(len(costs))):
        choice = int(taken[item, left])
        chosen.append(choice)
        left -= -(-extra[item][choice] // unit)
    return chosen[::-1]
