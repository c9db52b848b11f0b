"""`bcquant bench WHAT MODEL`: a model measured on this machine; one file a kind of measurement.

A file `bench/NAME.py` exports a `Verb` as VERB, as those of `bcquant/cli` do; NAME is typed.
"""

from __future__ import annotations

import argparse

from bcquant import registry
from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError


def measurements() -> list[Verb]:
    """Every kind of measurement there is, sorted by name."""
    return [registry.load(__name__, name, "VERB") for name in registry.names(__name__)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command a kind, with its own flags."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", title="measurements")
    for verb in measurements():
        lines = [f"  {line.strip()}" for line in verb.examples.strip().splitlines()]
        sub = kinds.add_parser(
            verb.name,
            help=verb.help,
            description=verb.help + ".",
            epilog="\n".join(["examples:", *lines]),
        )
        verb.add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Measure.

    Raises:
        ConfigError: no measurement was named; else what the measurement raises.
    """
    if args.what is None:
        known = ", ".join(verb.name for verb in measurements())
        raise ConfigError(f"a measurement is missing ({known}); see `bcquant bench --help`")
    verb: Verb = registry.load(__name__, args.what, "VERB")
    return verb.run(args)


VERB = Verb(
    name="bench",
    help="measure a model on this machine: speed and memory, or its quality",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant bench decode model.bcq
    bcquant bench decode quantized --prompt-tokens 512 --tokens 128 --threads 4 --json
    bcquant bench quality path/to/model --text en=book.txt --out sweep
    """,
)
