"""`python -m bcquant` is the console script."""

from bcquant.cli import entry

entry()
