"""The rows that every speed benchmark writes: one JSON list, and a Markdown table beside it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bcquant.io.atomic import atomic_write_json, atomic_write_text
from benchmarks._machine import machine

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]
NOISY_CORES = 0.15

# Columns of every row; a script adds its own behind them. A figure that does not apply is None.
FIELDS = (
    "impl", "version", "op", "K", "N", "M", "group_size", "threads",
    "median_us", "gbps", "gops", "ratio_to",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A figure that the project promised, and whether this run reached it.

    Attributes:
        name: what is compared, with its worst case where it covers several rows.
        value: measured; None: not measured in this run.
        needed: at least this.
        others_cores: cores that others kept busy meanwhile; beyond NOISY_CORES nothing is proved.
    """

    name: str
    value: float | None
    needed: float
    others_cores: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"not measured  {self.name} (needed {self.needed:g})"
        word = "holds " if self.value >= self.needed else "MISSED"
        line = f"{word}  {self.name}: {self.value:.2f} (needed {self.needed:g})"
        if (self.others_cores or 0.0) > NOISY_CORES:
            line += f"  NOISY, others kept {self.others_cores:.1f} cores busy"
        return line


def make_row(
    impl: str,
    impl_version: str,
    op: str,
    *,
    threads: int,
    median_us: float,
    shape: tuple[int | None, int | None, int | None] = (None, None, None),
    group_size: int | None = None,
    gbps: float | None = None,
    gops: float | None = None,
    ratio_to: Mapping[str, float] | None = None,
    **more: Any,
) -> Row:
    """A row of FIELDS, then `more`.

    Args:
        shape: K, N, M.
        ratio_to: other implementation -> how many times as fast this row is.
    """
    k, n, m = shape
    ratios = {name: _short(value) for name, value in (ratio_to or {}).items()}
    values = (
        impl, impl_version, op, k, n, m, group_size, threads,
        _short(median_us), _short(gbps), _short(gops), ratios,
    )  # fmt: skip
    shown = {
        key: _short(value) if isinstance(value, float) else value for key, value in more.items()
    }
    return dict(zip(FIELDS, values, strict=True)) | shown


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def write_results(
    path: Path, title: str, rows: Sequence[Row], targets: Sequence[Target], notes: Sequence[str]
) -> str:
    """Write `path` (the list of rows) and the same name in Markdown; returns the Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, list(rows))
    text = markdown(title, rows, targets, notes)
    atomic_write_text(path.with_suffix(".md"), text)
    return text


def markdown(
    title: str, rows: Sequence[Row], targets: Sequence[Target], notes: Sequence[str]
) -> str:
    """Title, machine, notes, the targets one a line, and a table of the columns in use."""
    keys: list[str] = list(dict.fromkeys(key for row in rows for key in row))
    keys = [k for k in keys if k != "version" and any(row.get(k) not in (None, {}) for row in rows)]
    versions = dict.fromkeys(f"{row['impl']}: {row['version']}" for row in rows)
    lines = [f"# {title}", "", f"{date.today()}, {machine()}.", ""]
    lines += [f"- {line}" for line in (*versions, *notes)]
    lines += ["", "```", *map(str, targets), "```", ""] if targets else [""]
    lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row.get(k)) for k in keys) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{value[k]:.2f}x {k}" for k in value)
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def package_version(name: str) -> str:
    """`name` and the version that is installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} (not installed)"


def add_common_arguments(
    parser: argparse.ArgumentParser, json_name: str, has_threads: bool = True
) -> None:
    """--json, --quick, --repeat and --threads, which the scripts share."""
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"rows (results/{json_name}); FILE.md beside it"
    )
    parser.add_argument("--quick", action="store_true", help="a small part of it, under 50 s")
    parser.add_argument("--repeat", type=int, metavar="N", help="rounds over all implementations")
    if has_threads:
        parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")


def results_path(args: argparse.Namespace, json_name: str) -> Path:
    """Where the rows go: a quick run never overwrites the results of a full one."""
    if args.json is not None:
        return Path(args.json)
    return RESULTS / json_name if not args.quick else Path("/tmp/bcquant-quick") / json_name
