"""The Pareto front of a sweep and what its table and its plot have in common."""

from __future__ import annotations

from collections.abc import Sequence

from bcquant.eval.sweep.rows import Row


def judged(rows: Sequence[Row], text: str) -> list[Row]:
    """Rows that have a size and an increase on a text, by size."""
    found = [r for r in rows if r.bits_per_weight is not None and r.increase(text) is not None]
    return sorted(found, key=lambda row: (row.bits_per_weight, row.increase(text)))


def pareto_front(rows: Sequence[Row], text: str) -> list[Row]:
    """Rows that no other row beats: none as small or smaller has as low an increase or lower."""
    front: list[Row] = []
    for row in judged(rows, text):
        increase, best = row.increase(text), front[-1].increase(text) if front else None
        if best is None or (increase is not None and increase < best):
            front.append(row)
    return front
