"""A sweep as JSON and as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bcquant.eval.sweep.front import pareto_front
from bcquant.eval.sweep.rows import Row


def as_document(rows: Sequence[Row], texts: Sequence[str], facts: dict[str, Any]) -> dict[str, Any]:
    """Plain values: `facts`, the rows, and for each text the names of the rows on the front."""
    front = {t: [f"{r.tool} {r.label}" for r in pareto_front(rows, t)] for t in texts}
    return {**facts, "pareto_front": front, "rows": [asdict(row) for row in rows]}


def markdown(rows: Sequence[Row], texts: Sequence[str], facts: dict[str, Any]) -> str:
    """One line a point, by size; points of the Pareto front are bold, problems come last."""
    lines = ["# Perplexity against size", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- float perplexity on {t}: {base:.4f}" for t, base in _float(rows, texts).items()]
    heads = ["tool", "point", "bits/weight", "all weights, MB"]
    for text in texts:
        heads += [f"{text}: perplexity", "increase", "KL", "top-1"]
    heads += ["prefill tok/s", "decode tok/s", "quantization s", "peak MiB"]
    lines += ["", "| " + " | ".join(heads) + " |", "|---|---|" + "--:|" * (len(heads) - 2)]
    fronts = {text: {id(row) for row in pareto_front(rows, text)} for text in texts}
    worked = [row for row in rows if not row.problem]
    for row in sorted(worked, key=lambda row: row.bits_per_weight or 0.0):
        cells = [row.tool, row.label, f"{row.bits_per_weight:.3f}", _shown(row.stored_mb, 1)]
        for text in texts:
            cells += _figures(row, text, is_best=id(row) in fronts[text])
        cells += [_shown(row.prefill_tokens_per_s, 0), _shown(row.decode_tokens_per_s, 1)]
        cells += [_shown(row.seconds, 1), _shown(row.peak_mb, 0)]
        lines.append("| " + " | ".join(cells) + " |")
    said = [f"- {row.tool} {row.label}: {row.problem or row.note}" for row in rows]
    said = [line for line, row in zip(said, rows, strict=True) if row.problem or row.note]
    return "\n".join(lines + (["", *said] if said else [])) + "\n"


def _float(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in rows:
        for text in texts:
            value = row.texts.get(text, {}).get("perplexity_float")
            if value is not None:
                found.setdefault(text, value)
    return found


def _figures(row: Row, text: str, is_best: bool) -> list[str]:
    figures, increase = row.texts.get(text, {}), row.increase(text)
    shown = "not finite" if increase is None else f"{increase:+.2f} %"
    agreement = figures.get("top1_agreement")
    return [
        _shown(figures.get("perplexity_quantized"), 3),
        f"**{shown}**" if is_best else shown,
        _shown(figures.get("kl_mean"), 4),
        "" if agreement is None else f"{100 * agreement:.1f} %",
    ]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
