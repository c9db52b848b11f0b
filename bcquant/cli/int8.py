"""`bcquant int8 MODEL`: 8-bit weights, with or without 8-bit activations."""

from __future__ import annotations

import argparse

from bcquant.cli.quantize_flags import add_run_arguments, calib_options, run_recipe
from bcquant.cli.verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `int8`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--scheme", default="w8a16", choices=("w8a16", "w8a8"),
        help="w8a16: weights only; w8a8: activations too, int8 per token at run time (w8a16)",
    )  # fmt: skip
    parser.add_argument(
        "--group-size",
        type=int,
        default=-1,
        metavar="N",
        help="w8a16: columns that share a scale, -1 = row (-1)",
    )


def run(args: argparse.Namespace) -> int:
    """Quantize."""
    from bcquant.errors import ConfigError
    from bcquant.spec.quant_format import QuantFormat
    from bcquant.spec.recipe import Recipe

    is_w8a8 = args.scheme == "w8a8"
    if is_w8a8 and args.group_size != -1:
        raise ConfigError(
            f"--group-size {args.group_size}: w8a8 has one scale per row; leave it out"
        )
    recipe = Recipe(
        format=QuantFormat(8, args.group_size, True, "int8_token" if is_w8a8 else "none"),
        calib=calib_options(args),
        output="compressed-tensors",
        lm_head=args.lm_head,
        keep_arch=args.keep_arch,
        rotate=args.rotate,
    )
    return run_recipe(args, recipe, f"int8-{args.scheme}")


VERB = Verb(
    name="int8",
    help="quantize weights to 8 bits, with or without 8-bit activations",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant int8 path/to/model
    bcquant int8 path/to/model --scheme w8a8 -o model-w8a8
    bcquant int8 model.gguf --group-size 64 --json
    """,
)
