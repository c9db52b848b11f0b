"""`quant_report.json` and the table that a person reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any

from rich.table import Table

from bcquant.models.architecture import STAGES
from bcquant.pipeline.guard import PREPARATION
from bcquant.quant.limits import reader_limits
from bcquant.spec.manifest import Figures, Manifest, ManifestRow
from bcquant.spec.quant_format import QuantFormat

REPORT_NAME = "quant_report.json"


Seconds = Mapping[str, Mapping[str, float]]  # module -> candidate or PREPARATION -> seconds


def report(manifest: Manifest, seconds: Seconds) -> dict[str, Any]:
    """The report as plain values.

    Beside the manifest's rows: loss before (RTN) and after (the kept candidate) and seconds, per
    module and per candidate; they are all that differs between two runs of the same command.
    """
    modules = [
        {
            "module": row.module,
            "bits": row.bits,
            "candidate": row.candidate,
            "loss_before": row.losses.get("rtn"),
            "loss_after": row.losses.get(row.candidate),
            "losses": row.losses,
            "damp_percent": row.damp_percent,
            "note": row.note,
            "seconds": round(sum(seconds.get(row.module, {}).values()), 3),
            "candidate_seconds": {k: round(v, 4) for k, v in seconds.get(row.module, {}).items()},
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
    activation = manifest.recipe["format"]["activation"]
    target = manifest.recipe["output"]
    kinds = {(r.bits, r.group_size, r.symmetric, r.shape) for r in manifest.modules}
    return sorted(
        {
            reason
            for bits, group_size, symmetric, (n, k) in sorted(kinds)
            for reason in reader_limits(
                QuantFormat(bits, group_size, symmetric, activation), n, k, target
            )
        }
    )


def tables(manifest: Manifest, seconds: Seconds | None = None) -> list[Table]:
    """Bits where they differ, losses by kind of module, candidates and the whole model's figures.

    Args:
        seconds: `candidate_seconds` by module; without them the table of candidates shows none.
    """
    result = [_modules_table(manifest), _candidates_table(manifest, seconds or {})]
    if len({row.bits for row in manifest.modules}) > 1:
        result.insert(0, _bits_table(manifest))
    if manifest.whole_model:
        result.append(_whole_model_table(manifest.whole_model))
    return result


def candidate_seconds(summary: Mapping[str, Any]) -> Seconds:
    """The seconds that a report holds."""
    return {row["module"]: row["candidate_seconds"] for row in summary["modules"]}


def _bits_table(manifest: Manifest) -> Table:
    """Bits of every fused set; a digit a layer."""
    table = Table(title="bits allocated")
    table.add_column("modules")
    table.add_column("bits a weight, layer by layer", overflow="fold")
    bits = {row.module: row.bits for row in manifest.modules}
    for stage in STAGES:
        found = [value for module, value in bits.items() if module.endswith(f".{stage[0]}")]
        names = ", ".join(short.split(".")[-1] for short in stage)
        table.add_row(names, "".join(map(str, found)))
    if "lm_head" in bits:
        table.add_row("lm_head", str(bits["lm_head"]))
    return table


def _modules_table(manifest: Manifest) -> Table:
    kinds: dict[str, list[ManifestRow]] = {}
    for row in manifest.modules:
        kinds.setdefault(row.module.split(".")[-1], []).append(row)
    table = Table(title="held-out output error, relative, mean over layers")
    for heading in ("module", "RTN", "kept", "candidates kept", "notes"):
        table.add_column(heading, justify="right" if heading in ("RTN", "kept") else "left")
    for kind, rows in kinds.items():
        before = sum(r.losses.get("rtn", 0.0) for r in rows) / len(rows)
        after = sum(r.losses.get(r.candidate, 0.0) for r in rows) / len(rows)
        kept = Counter(_kind(r.candidate) for r in rows)
        chosen = ", ".join(f"{n} x {name}" for name, n in kept.most_common())
        notes = sum(1 for r in rows if r.note)
        table.add_row(
            kind, f"{before:.5f}", f"{after:.5f}", chosen, f"{notes} in the report" if notes else ""
        )
    return table


def _candidates_table(manifest: Manifest, seconds: Seconds) -> Table:
    """How often each kind of candidate was tried and kept, its mean loss, and its cost."""
    table = Table(title="candidates")
    for heading in ("candidate", "tried", "kept", "loss, mean", "seconds"):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    losses: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    for row in manifest.modules:
        for label, loss in row.losses.items():
            losses.setdefault(_kind(label), []).append(loss)
    for parts in seconds.values():
        for label, value in parts.items():
            spent[_kind(label)] = spent.get(_kind(label), 0.0) + value
    kept = Counter(_kind(row.candidate) for row in manifest.modules)
    for kind, found in losses.items():
        cost = f"{spent.get(kind, 0.0):.1f}" if seconds else ""
        table.add_row(kind, str(len(found)), str(kept[kind]), f"{mean(found):.5f}", cost)
    if seconds:
        table.add_row(PREPARATION, "", "", "", f"{spent.get(PREPARATION, 0.0):.1f}")
    return table


def _whole_model_table(figures: Figures) -> Table:
    tokens = _shown(figures["tokens"], ".0f")
    table = Table(title=f"whole model on {tokens} tokens that nothing was fitted to")
    for heading in (
        "perplexity float",
        "quantized",
        "increase",
        "KL mean (nats)",
        "top-1 agreement",
    ):
        table.add_column(heading, justify="right")
    table.add_row(
        _shown(figures["perplexity_float"], ".3f"),
        _shown(figures["perplexity_quantized"], ".3f"),
        _shown(figures["increase_percent"], "+.2f", " %"),
        _shown(figures["kl_mean"], ".4f"),
        _shown(figures["top1_agreement"], ".1%"),
    )
    return table


def _shown(value: float | None, form: str, unit: str = "") -> str:
    return "not finite" if value is None else f"{value:{form}}{unit}"


def _kind(candidate: str) -> str:
    """The candidate's name without the strength of its retargeting."""
    return re.sub(r"retarget[0-9.]+", "retarget", candidate)
