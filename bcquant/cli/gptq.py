"""`bcquant gptq MODEL`: 2, 3, 4 or 8-bit weights by error feedback."""

from __future__ import annotations

import argparse

from bcquant.cli.quantize_flags import add_run_arguments, calib_options, run_recipe
from bcquant.cli.verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `gptq`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--bits", type=int, default=4, choices=(2, 3, 4, 8), help="bits a weight (4)"
    )
    parser.add_argument(
        "--group-size", type=int, metavar="N",
        help="columns that share a scale, -1 = whole row (the largest of 128, 64, 32 that fits)",
    )  # fmt: skip
    parser.add_argument(
        "--asym", action="store_true", help="a zero per group instead of a fixed one"
    )
    parser.add_argument(
        "--format", default="gptq", choices=("gptq", "gptq_v2", "compressed-tensors"),
        help="file format: gptq loads in most places, gptq_v2 stores true zeros (gptq)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Quantize."""
    from bcquant.models.source import open_model
    from bcquant.pipeline.output import default_group_size
    from bcquant.spec.quant_format import QuantFormat
    from bcquant.spec.recipe import Recipe

    group_size = args.group_size
    if group_size is None:
        with open_model(args.model) as source:
            group_size = default_group_size(source)
    recipe = Recipe(
        format=QuantFormat(args.bits, group_size, not args.asym),
        calib=calib_options(args),
        output=args.format,
        lm_head=args.lm_head,
        keep_arch=args.keep_arch,
    )
    return run_recipe(args, recipe, f"gptq-{args.bits}bit")


VERB = Verb(
    name="gptq",
    help="quantize weights to 2, 3, 4 or 8 bits with GPTQ",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant gptq path/to/model --bits 4 --group-size 128
    bcquant gptq model.gguf -o out --bits 3 --group-size 64 --asym --format compressed-tensors
    bcquant gptq org/name --calib texts/ --calib-tokens 32768 --seed 7 --json
    """,
)
