"""`bcquant inspect PATH`: what a checkpoint is, what it costs a weight, and what loads it.

A package (`NAME.bcq`) is described by _package_report.py.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from bcquant.loaders._facts import Facts
    from bcquant.loaders._tensor_rows import TensorRow
    from bcquant.loaders._verdict import Verdict

_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "path", metavar="PATH", help="a model folder, weight file, .bcq package or hub id"
    )
    parser.add_argument("--all", action="store_true", help="list every layer's tensors by name")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, every tensor in it"
    )
    parser.add_argument(
        "--context", type=int, metavar="N",
        help="of a package: plan the memory of N tokens (default: 2048, or what the model has)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit status is 0 for everything that can be opened."""
    if args.context is not None and args.context < 1:
        raise ConfigError(f"--context is {args.context}; at least 1 is needed")
    if Path(args.path).suffix.lower() == ".bcq":
        from bcquant.cli._package_report import print_package

        print_package(args.path, args.context, args.json)
        return 0
    if args.context is not None:
        raise ConfigError(f"--context is of packages, and {args.path} is none; leave it out")
    from bcquant.loaders._collect import collect_facts
    from bcquant.loaders._survey import CHECKPOINT_LOADERS, loaders

    facts = collect_facts(args.path)
    verdicts = [loader.judge(facts) for loader in loaders(CHECKPOINT_LOADERS)]
    if args.json:
        print(json.dumps(as_json(facts, verdicts) | _engine_json(facts), indent=2))
    else:
        _print_report(facts, verdicts, args.all)
    return 0


def as_json(facts: Facts, verdicts: list[Verdict]) -> dict[str, Any]:
    """The report as plain values; sizes in bytes, bits_per_weight null where it is not known."""
    quant: dict[str, Any] | None = None
    if facts.quant is not None:
        fmt = facts.quant.format
        quant = {
            "method": facts.quant.method,
            "version": facts.quant.version,
            "bits": fmt.bits,
            "group_size": fmt.group_size,
            "symmetric": fmt.symmetric,
            "activation": fmt.activation,
            "lm_head": facts.quant.lm_head,
            "mixed": bool(facts.quant.dynamic),
        }
    return {
        "path": str(facts.path),
        "kind": facts.kind,
        "format": facts.format_name,
        "architecture": facts.architecture,
        "family": facts.family,
        "quantization": quant,
        "tokenizer": facts.tokenizer,
        "num_weights": facts.num_weights,
        "file_bytes": facts.file_bytes,
        "bits_per_weight": facts.bits_per_weight,
        "tensors": [
            {
                "name": row.name,
                "dtype": row.dtype,
                "shape": list(row.shape),
                "num_bytes": row.num_bytes,
                "bits_per_weight": row.bits_per_weight,
            }
            for row in facts.rows
        ],
        "loaders": [{"loader": v.loader, "loads": v.loads, "reason": v.reason} for v in verdicts],
    }


def _engine_json(facts: Facts) -> dict[str, Any]:
    from bcquant.cli._engine_facts import engine_of, kernel_facts

    kernels = kernel_facts()._asdict()
    return {"kernels": kernels, "generate": engine_of(facts.path, facts.problem)}


def _print_report(facts: Facts, verdicts: list[Verdict], every: bool) -> None:
    from rich.console import Console

    from bcquant.cli._engine_facts import engine_of, kernel_facts
    from bcquant.loaders._survey import CHECKPOINT_LOADERS, checked_with

    console = Console(highlight=False, soft_wrap=False)
    bits = "unknown" if facts.bits_per_weight is None else f"{facts.bits_per_weight:.3f}"
    family = facts.family or "none of bcquant's"
    for label, value in (
        ("path", facts.path),
        ("format", facts.format_name),
        ("architecture", f"{facts.architecture or 'not stated'} (family: {family})"),
        ("tokenizer", facts.tokenizer or "none here"),
        ("weights", f"{facts.num_weights:,}"),
        ("size", f"{facts.file_bytes:,} bytes ({facts.file_bytes / 1e6:.1f} MB)"),
        ("bits per weight", f"{bits} (every stored tensor counted)"),
        ("kernels", kernel_facts().describe()),
        ("generate", engine_of(facts.path, facts.problem)),
    ):
        console.print(f"{label:<16}{value}", markup=False)
    console.print()
    console.print(_tensor_table(facts.rows, every))
    console.print(_loader_table(verdicts))
    console.print(f"Rules as of {checked_with(CHECKPOINT_LOADERS)}.", markup=False)


def _tensor_table(rows: tuple[TensorRow, ...], every: bool) -> Table:
    """Tensors that differ only in their layer's number share a line, unless `every`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="tensors", title_justify="left")
    for column in ("name", "dtype", "shape"):
        table.add_column(column, overflow="fold")
    table.add_column("count", justify="right")
    table.add_column("bits/weight", justify="right")
    counts: dict[tuple[str, str, tuple[int, ...], float | None], int] = {}
    for row in rows:
        name = row.name if every else _LAYER.sub("*", row.name)
        key = (name, row.dtype, row.shape, row.bits_per_weight)
        counts[key] = counts.get(key, 0) + 1
    for (name, dtype, shape, bits), count in counts.items():
        shown_bits = "" if bits is None else f"{bits:.3f}"
        shape_text = " x ".join(map(str, shape)) or "scalar"
        table.add_row(Text(name), dtype, shape_text, str(count), shown_bits)
    return table


def _loader_table(verdicts: list[Verdict]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="what loads it", title_justify="left")
    for column in ("program", "loads", "why"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        table.add_row(verdict.loader, verdict.loads, Text(verdict.reason))
    return table


VERB = Verb(
    name="inspect",
    help="show a checkpoint's or package's format, shapes, bits per weight and what loads it where",
    add_arguments=add_arguments,
    run=run,
    examples="""
        bcquant inspect path/to/model
        bcquant inspect model.gguf --all
        bcquant inspect quantized --json
        bcquant inspect model.bcq --context 4096
    """,
)
