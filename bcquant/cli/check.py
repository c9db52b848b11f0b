"""`bcquant check MODEL`: where a model loads, as it is and after an export, and why not."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from bcquant import registry
from bcquant.cli.verb import Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from bcquant.loaders._survey import Answer
    from bcquant.loaders._verdict import Export, Outlook, Subject, Verdict
    from bcquant.models.source import ModelSource
    from bcquant.spec.export_plan import Exporter, ExportPlan

_EXPORTERS = "bcquant.exporters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder, GGUF file, ONNX folder or hub id"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print one answer a program; the exit status is 0 for every model that can be described.

    Raises:
        CheckpointError: nothing that could be a model is there.
        ConfigError: a package that reads it is not installed.
    """
    from bcquant.loaders._survey import answer, describe, loaders

    subject = describe(args.model)
    outlook = _outlooks(subject)
    answers = [answer(loader, subject, outlook) for loader in loaders()]
    versions = {loader.name: loader.checked_with for loader in loaders()}
    if args.json:
        print(json.dumps(as_json(subject, answers, versions), indent=2))
    else:
        _print_table(subject, answers, versions)
    return 0


def as_json(subject: Subject, answers: list[Answer], versions: dict[str, str]) -> dict[str, Any]:
    """The answers as plain values; `exported` is null where no export is to be made."""
    return {
        "path": str(subject.path),
        "format": _format_name(subject),
        "loaders": [
            {
                "loader": found.as_it_is.loader,
                "checked_with": versions[found.as_it_is.loader],
                **_plain(found.as_it_is),
                "exported": None
                if found.exported is None
                else {"command": found.command, **_plain(found.exported)},
            }
            for found in answers
        ],
    }


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "loads": verdict.loads,
        "tested": verdict.is_tested,
        "reason": verdict.reason,
        "needs": verdict.needs,
    }


def _format_name(subject: Subject) -> str:
    from bcquant.loaders._facts import Facts

    if isinstance(subject, Facts):
        return subject.format_name
    uses = sorted(subject.graph.nbits, key=lambda use: (use.bits, use.block_size))
    kinds = [f"{use.bits}-bit in blocks of {use.block_size}" for use in uses]
    floats = "float16" if subject.graph.is_float16 else "float32"
    return ", ".join(["ONNX", *kinds, f"{floats} activations"])


def _outlooks(subject: Subject) -> Callable[[Export], Outlook]:
    """Plans of exports, each made once; only headers are read."""
    found: dict[Export, Outlook] = {}

    def outlook(export: Export) -> Outlook:
        from bcquant.models.source import open_model

        if export not in found:
            with open_model(subject.path) as source:
                found[export] = _outlook(export, source)
        return found[export]

    return outlook


def _outlook(export: Export, source: ModelSource) -> Outlook:
    """What the exporter's plan says; its tokenizer and values are checked when it is made."""
    from bcquant.cli import load_verb, verb_parser
    from bcquant.errors import BcquantError
    from bcquant.loaders._verdict import Outlook

    exporter: Exporter = registry.load(_EXPORTERS, export.exporter, "EXPORTER")
    words = [export.exporter, str(source.path), *export.flags]
    try:
        options = exporter.options(verb_parser(load_verb("export")).parse_args(words))
        plan: ExportPlan = exporter.prepare(source, options).plan()
    except BcquantError as error:  # e.g. a package that the exporter needs is missing
        return Outlook((str(error),))
    return Outlook(plan.refusals, any(tensor.error != 0 for tensor in plan.tensors))


def _print_table(subject: Subject, answers: list[Answer], versions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(f"{subject.path}\n{_format_name(subject)}", markup=False)
    table = Table()
    for column in ("program", "loads", "why", "what it takes"):
        table.add_column(column, overflow="fold", no_wrap=column == "program")
    for found in answers:
        shown, loads = found.as_it_is, found.as_it_is.loads
        if found.exported is not None:
            shown, loads = found.exported, f"exported: {found.exported.loads}"
        takes = "\n".join(part for part in (found.command, shown.needs) if part)
        loads += ", tested" if shown.is_tested else ""
        table.add_row(shown.loader, loads, Text(shown.reason), Text(takes))
    console.print(table)
    checked = ", ".join(dict.fromkeys(v for all_ in versions.values() for v in all_.split(", ")))
    console.print(f"Rules as of {checked}.", markup=False)


VERB = Verb(
    name="check",
    help="say which programs load a model, as it is and after an export, and why not",
    add_arguments=add_arguments,
    run=run,
    examples="""
        bcquant check path/to/model
        bcquant check model.gguf
        bcquant check model-onnx --json
    """,
)
