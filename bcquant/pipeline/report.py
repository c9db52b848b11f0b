"""`quant_report.json` and the table that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from bcquant.quant.limits import reader_limits
from bcquant.spec.manifest import Manifest, ManifestRow
from bcquant.spec.quant_format import QuantFormat

REPORT_NAME = "quant_report.json"


def report(manifest: Manifest, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The report as plain values.

    Beside the manifest's rows: loss before (RTN) and after (the kept candidate) and seconds per
    module; `seconds` is the only part that differs between two runs of the same command.
    """
    modules = [
        {
            "module": row.module,
            "candidate": row.candidate,
            "loss_before": row.losses.get("rtn"),
            "loss_after": row.losses.get(row.candidate),
            "losses": row.losses,
            "damp_percent": row.damp_percent,
            "note": row.note,
            "seconds": round(seconds.get(row.module, 0.0), 3),
        }
        for row in manifest.modules
    ]
    return {
        "bcquant": manifest.bcquant,
        "source": manifest.source,
        "recipe": manifest.recipe,
        "calibration": manifest.calibration,
        "whole_model": manifest.whole_model,
        "reader_limits": limits(manifest),
        "modules": modules,
    }


def limits(manifest: Manifest) -> list[str]:
    """What some readers of the output refuse or round, each once (see `quant.limits`)."""
    fmt = QuantFormat(**manifest.recipe["format"])
    target = manifest.recipe["output"]
    shapes = sorted({row.shape for row in manifest.modules})
    return sorted({reason for n, k in shapes for reason in reader_limits(fmt, n, k, target)})


def tables(manifest: Manifest) -> list[Table]:
    """Losses by kind of module, and the whole model's figures."""
    kinds: dict[str, list[ManifestRow]] = {}
    for row in manifest.modules:
        kinds.setdefault(row.module.split(".")[-1], []).append(row)
    modules = Table(title="held-out output error, relative, mean over layers")
    for heading in ("module", "RTN", "kept", "candidates kept", "notes"):
        modules.add_column(heading, justify="right" if heading in ("RTN", "kept") else "left")
    for kind, rows in kinds.items():
        before = sum(r.losses.get("rtn", 0.0) for r in rows) / len(rows)
        after = sum(r.losses.get(r.candidate, 0.0) for r in rows) / len(rows)
        chosen = ", ".join(f"{n} x {name}" for name, n in _kinds(rows).items())
        notes = sum(1 for r in rows if r.note)
        modules.add_row(
            kind, f"{before:.5f}", f"{after:.5f}", chosen, f"{notes} in the report" if notes else ""
        )
    result = [modules]
    figures = manifest.whole_model
    if figures:
        tokens = _shown(figures["tokens"], ".0f")
        whole = Table(title=f"whole model on {tokens} tokens that nothing was fitted to")
        for heading in (
            "perplexity float",
            "quantized",
            "increase",
            "KL mean (nats)",
            "top-1 agreement",
        ):
            whole.add_column(heading, justify="right")
        whole.add_row(
            _shown(figures["perplexity_float"], ".3f"),
            _shown(figures["perplexity_quantized"], ".3f"),
            _shown(figures["increase_percent"], "+.2f", " %"),
            _shown(figures["kl_mean"], ".4f"),
            _shown(figures["top1_agreement"], ".1%"),
        )
        result.append(whole)
    return result


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "not finite" if value is None else f"{value:{form}}{unit}"


def _kinds(rows: list[ManifestRow]) -> dict[str, int]:
    """How often each kind of candidate was kept, retargeting strengths not told apart."""
    counts: dict[str, int] = {}
    for row in rows:
        base, _, strength = row.candidate.partition("+retarget")
        kind = f"{base}+retarget" if strength else base
        counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
