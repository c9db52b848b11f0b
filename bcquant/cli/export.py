"""`bcquant export FORMAT MODEL`: plan, validate everything, then write."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant import registry
from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError, ExportError
from bcquant.spec.export_plan import Exporter, ExportJob, ExportPlan

if TYPE_CHECKING:
    from rich.table import Table

PACKAGE = "bcquant.exporters"


def exporters() -> list[Exporter]:
    """Every exporter there is, sorted by key."""
    return [registry.load(PACKAGE, key, "EXPORTER") for key in registry.names(PACKAGE)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command an exporter: common flags, then its own."""
    formats = parser.add_subparsers(dest="exporter", metavar="FORMAT", title="formats")
    for exporter in exporters():
        lines = [f"  {line.strip()}" for line in exporter.examples.strip().splitlines()]
        sub = formats.add_parser(
            exporter.name,
            help=exporter.help,
            description=exporter.help + ".",
            epilog="\n".join(["examples:", *lines]),
        )
        sub.add_argument("model", metavar="MODEL", help="checkpoint folder, GGUF file or hub id")
        sub.add_argument("-o", "--out", metavar="OUT", help="what to create (named after MODEL)")
        sub.add_argument(
            "--allow-lossy", action="store_true",
            help="write although some weights change; the plan says which, and by how much",
        )  # fmt: skip
        sub.add_argument("--dry-run", action="store_true", help="print the plan, write nothing")
        sub.add_argument("--json", action="store_true", help="print the plan as JSON")
        exporter.add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Export one checkpoint.

    Raises:
        ConfigError: no format was named, or a flag has a wrong value.
        ExportError: the format cannot hold the checkpoint, it would change weights and
            --allow-lossy was not given, or it cannot be written.
    """
    from bcquant.cli.progress import progress_bar
    from bcquant.io.atomic_folder import refuse_existing
    from bcquant.models.source import open_model

    if args.exporter is None:
        known = ", ".join(exporter.name for exporter in exporters())
        raise ConfigError(f"a format is missing ({known}); see `bcquant export --help`")
    exporter: Exporter = registry.load(PACKAGE, args.exporter, "EXPORTER")
    options = exporter.options(args)
    with open_model(args.model) as source:
        out = Path(args.out) if args.out else exporter.default_out(Path(source.path))
        if not args.dry_run:
            refuse_existing(out)
        job: ExportJob = exporter.prepare(source, options)
        _refuse(job.plan())
        with progress_bar("tensors") as bar:
            plan = job.validate(lambda what, done, total: bar(f"checking {what}", done, total))
        _refuse(plan)
        _show(plan, out, args)
        if args.dry_run:
            return 0
        if plan.lossy and not args.allow_lossy:
            raise ExportError(_lossy_sentence(plan))
        with progress_bar("tensors") as bar:
            made = job.write(out, lambda what, done, total: bar(f"writing {what}", done, total))
    if not args.json:
        print(f"written: {', '.join(map(str, made))}")
        if exporter.is_verifiable:
            first = out if out.exists() else made[0]  # of a package in shards
            print(f"next: bcquant verify {args.model} {first}{_accepted(plan)}")
    return 0


def _refuse(plan: ExportPlan) -> None:
    if plan.refusals:
        raise ExportError(f"{plan.exporter} cannot hold this model: {'; '.join(plan.refusals)}")


def _lossy_sentence(plan: ExportPlan) -> str:
    worst = max(plan.lossy, key=lambda tensor: tensor.error or 0.0)
    return (
        f"{len(plan.lossy)} of {len(plan.tensors)} tensors would change, most of all "
        f"{worst.name} as {worst.stored_as} (relative error {worst.error or 0.0:.2g}); give "
        "--allow-lossy to write it all the same"
    )


def _accepted(plan: ExportPlan) -> str:
    """The flag of `bcquant verify` that takes what this plan changes."""
    worst = max((tensor.error or 0.0 for tensor in plan.lossy), default=0.0)
    return f" --max-weight-error {1.05 * worst:.2g}" if worst else ""


def _show(plan: ExportPlan, out: Path, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps({"out": str(out), "written": not args.dry_run, **plan.as_dict()}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(plan_table(plan))
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)


def plan_table(plan: ExportPlan) -> Table:
    """Tensors of the plan grouped by how they are stored, and the files."""
    from rich.table import Table

    table = Table(title=f"{plan.exporter}: {plan.num_bytes / 1e6:.1f} MB")
    for heading in ("stored as", "tensors", "MB", "values"):
        table.add_column(heading, justify="left" if heading in ("stored as", "values") else "right")
    for kind in dict.fromkeys(tensor.stored_as for tensor in plan.tensors):
        rows = [tensor for tensor in plan.tensors if tensor.stored_as == kind]
        errors = [tensor.error or 0.0 for tensor in rows if tensor in plan.lossy]
        values = f"changed, relative error up to {max(errors):.2g}" if errors else "exact"
        size = sum(tensor.num_bytes for tensor in rows) / 1e6
        table.add_row(kind, str(len(rows)), f"{size:.1f}", values)
    for name, size in plan.files:
        table.add_row(f"file {name}", "", f"{size / 1e6:.1f}" if size else "", "")
    return table


VERB = Verb(
    name="export",
    help="write a checkpoint as ONNX, GGUF, ... with the same integers",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant export onnx model-gptq -o model-onnx
    bcquant export gguf model-gptq -o model.gguf
    bcquant export onnx model-gptq --target genai --dry-run
    """,
)
