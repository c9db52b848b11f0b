"""`bcquant gptq MODEL`: 2, 3, 4 or 8-bit weights by error feedback."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bcquant.cli.quantize_flags import (
    add_run_arguments,
    calib_options,
    output_folder,
    run_recipe,
)
from bcquant.cli.verb import Verb

if TYPE_CHECKING:
    from bcquant.pipeline.allocate import Target
    from bcquant.spec.recipe import Recipe

DEFAULT_BITS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `gptq`."""
    add_run_arguments(parser)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--bits", type=int, choices=(2, 3, 4, 8), help=f"bits a weight ({DEFAULT_BITS})"
    )
    size.add_argument(
        "--target-bpw", type=float, metavar="X",
        help="choose bits per fused set: stored bits a weight, scales included, e.g. 3.5",
    )  # fmt: skip
    size.add_argument(
        "--target-size", metavar="SIZE",
        help="choose bits per fused set: size of the whole folder, e.g. 2GB, 700MB, 1.5GiB",
    )  # fmt: skip
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

    target = _target(args)
    group_size = args.group_size
    if group_size is None:
        with open_model(args.model) as source:
            group_size = default_group_size(source)
    bits = DEFAULT_BITS if args.bits is None else args.bits
    recipe = Recipe(
        format=QuantFormat(bits, group_size, not args.asym),
        calib=calib_options(args),
        output=args.format,
        lm_head=args.lm_head,
        keep_arch=args.keep_arch,
        rotate=args.rotate,
    )
    if target is None:
        return run_recipe(args, recipe, f"gptq-{bits}bit")
    name = args.target_size or f"{args.target_bpw:g}bpw"
    suffix = f"gptq-{name.replace(' ', '')}"
    return run_recipe(args, _allocated(args, recipe, target, suffix), suffix)


def _target(args: argparse.Namespace) -> Target | None:
    if args.target_bpw is None and args.target_size is None:
        return None
    from bcquant.pipeline.allocate import Target, parse_size

    num_bytes = None if args.target_size is None else parse_size(args.target_size)
    return Target(args.target_bpw, num_bytes)


def _allocated(args: argparse.Namespace, recipe: Recipe, target: Target, suffix: str) -> Recipe:
    """The recipe with bits of their own for every fused set."""
    from bcquant.cli.progress import progress_bar
    from bcquant.models.rotated_source import rotate
    from bcquant.models.source import open_model
    from bcquant.pipeline.allocate import allocate

    try:
        with (
            progress_bar("steps", quiet=args.json) as bar,
            open_model(args.model) as opened,
            rotate(opened, recipe.rotate, recipe.calib.seed) as source,
        ):
            found = allocate(source, recipe, target, output_folder(args, suffix), args.restart, bar)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command goes on from here") from stop
    if not args.json:
        print(
            f"allocated {found.bits_per_weight:.4g} bits a weight, predicted KL "
            f"{found.predicted_kl:.4g} nats a token"
        )
    return found.applied(recipe)


VERB = Verb(
    name="gptq",
    help="quantize weights to 2, 3, 4 or 8 bits with GPTQ",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant gptq path/to/model --bits 4 --group-size 128
    bcquant gptq model.gguf -o out --bits 3 --group-size 64 --asym --format compressed-tensors
    bcquant gptq path/to/model --target-bpw 3.5
    bcquant gptq path/to/model --target-size 2GB -o model-2gb
    bcquant gptq org/name --calib texts/ --calib-tokens 32768 --seed 7 --json
    """,
)
