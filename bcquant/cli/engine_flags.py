"""Flags of the verbs that run a model: which engine, how many threads, how exact."""

from __future__ import annotations

import argparse


def add_engine_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare --engine, --threads and --precision.

    Args:
        default: of --engine; "auto" is a choice only where it is the default.
    """
    choices = ("auto", "native", "torch") if default == "auto" else ("native", "torch")
    said = (
        "auto: native for a quantized checkpoint that the kernels can run, else torch"
        if default == "auto"
        else "torch is exact and the judge, native what generate runs"
    )
    parser.add_argument(
        "--engine", choices=choices, default=default, help=f"{said} (default: {default})"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="default: the physical cores that may be used"
    )
    parser.add_argument(
        "--precision", choices=("exact", "int8"),
        help="of native: activations float32 (exact) or int8 per group (default: int8)",
    )  # fmt: skip
