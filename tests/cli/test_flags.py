"""Flags are a promise: flags.txt holds all of them, and a change has to be made there on purpose.

`python tests/cli/test_flags.py` writes the file anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bcquant.cli import load_verb, verb_names, verb_parser

GOLDEN = Path(__file__).with_name("flags.txt")


def describe(action: argparse.Action) -> str:
    """One argument as text: its spellings, what it takes, and its default where it has one."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    takes = ""
    if action.choices is not None:
        takes = " {" + ",".join(map(str, action.choices)) + "}"
    elif action.option_strings and action.nargs != 0:
        takes = f" {action.metavar or action.dest.upper()}"
    many = f" (nargs {action.nargs})" if action.nargs not in (None, 0) else ""
    has_default = action.default not in (None, argparse.SUPPRESS) and action.default is not False
    default = f" = {action.default}" if has_default else ""
    required = " (required)" if action.option_strings and action.required else ""
    return name + takes + many + default + required


def listing(prefix: str, parser: argparse.ArgumentParser) -> list[str]:
    lines = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                lines += listing(f"{prefix} {name}", sub)
        else:
            lines.append(f"{prefix} | {describe(action)}")
    return lines


def every_flag() -> str:
    lines = []
    for name in verb_names():
        lines += listing(name, verb_parser(load_verb(name)))
    return "\n".join(lines) + "\n"


def test_flags_are_those_of_the_golden_file() -> None:
    assert every_flag() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(every_flag(), encoding="utf-8")
