"""What a file of this package exports to be a verb of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One verb: `bcquant NAME ...`; the file `bcquant/cli/NAME.py` exports it as `VERB`.

    A verb's file is imported to print `bcquant --help`, so it imports nothing heavy at its top
    (no numpy, torch or rich); `run` imports what it needs.

    Attributes:
        name: what the user types; equal to the file's name.
        help: one line for the list of verbs, without a full stop.
        add_arguments: declares the verb's flags on its parser.
        run: does the work and returns the exit status; raises BcquantError for what a user, a file
            or a device caused.
        examples: complete command lines, one a line, printed under `--help`.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: str = ""
