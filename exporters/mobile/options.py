"""Flags of `bcquant export mobile` as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bcquant.errors import ConfigError


@dataclass(frozen=True)
class MobileOptions:
    """How the package is made.

    Attributes:
        split_mb: largest file in MB (10^6 bytes); None = one file.
        context: longest text in tokens to declare; None = the model's own.
        certificate: what `bcquant verify` wrote, to put inside; None = nothing.
        sign: file of the private key that signs the package; None = unsigned.
    """

    split_mb: int | None = None
    context: int | None = None
    certificate: Path | None = None
    sign: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("mobile")
    group.add_argument(
        "--split-mb", type=int, metavar="N",
        help="files of at most N MB (10^6 bytes): 1500 for a store's asset pack, 512 for a browser "
        "(default: one file)",
    )  # fmt: skip
    group.add_argument(
        "--context", type=int, metavar="TOKENS",
        help="longest text to declare (default: the model's own)",
    )  # fmt: skip
    group.add_argument(
        "--certificate", metavar="FILE",
        help="put this certificate.json of `bcquant verify` into the package",
    )  # fmt: skip
    group.add_argument(
        "--sign", metavar="KEY",
        help="sign the package with this Ed25519 private key (PEM, or the seed of 32 bytes) and "
        "write OUT.sig beside it; apps then refuse what another key signed",
    )  # fmt: skip


def options_of(args: argparse.Namespace) -> MobileOptions:
    """Parsed flags as a value.

    Raises:
        ConfigError: a number below 1.
    """
    for flag, value in (("--split-mb", args.split_mb), ("--context", args.context)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} is {value}; at least 1 is needed")
    certificate = None if args.certificate is None else Path(args.certificate)
    sign = None if args.sign is None else Path(args.sign)
    return MobileOptions(args.split_mb, args.context, certificate, sign)
