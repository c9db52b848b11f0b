"""What `gptq` and `int8` share: calibration and output flags, and the run itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.spec.presets import PRESETS, TUNE_STEPS, with_quality, with_tuning
from bcquant.spec.recipe import ROTATIONS

if TYPE_CHECKING:
    from bcquant.spec.recipe import CalibOptions, Recipe


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, output, calibration and run flags."""
    parser.add_argument(
        "model", help="checkpoint folder, .safetensors, .bin or GGUF file, or hub id"
    )
    parser.add_argument(
        "-o", "--out", metavar="OUT", help="folder to create (MODEL-METHOD beside the input)"
    )
    parser.add_argument(
        "--calib", default="builtin", metavar="TEXT",
        help="text file or folder, self (the model's own text), builtin (pydoc_data.topics)",
    )  # fmt: skip
    parser.add_argument(
        "--calib-tokens", type=int, default=16384, metavar="N",
        help="calibration tokens; an eighth is held out to choose among candidates (16384)",
    )  # fmt: skip
    parser.add_argument(
        "--seq-len", type=int, default=512, metavar="N", help="tokens a sequence (512)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses the calibration text (0)"
    )
    parser.add_argument(
        "--quality", default="default", choices=tuple(PRESETS),
        help="fast: one pass of error feedback; best: as --tune (default)",
    )  # fmt: skip
    parser.add_argument(
        "--tune", type=int, nargs="?", const=TUNE_STEPS, metavar="STEPS",
        help="train scales and norms by KL to the float model at the end; holds the whole model "
        f"in memory ({TUNE_STEPS} steps if no number is given)",
    )  # fmt: skip
    parser.add_argument(
        "--rotate", default="none", choices=ROTATIONS,
        help="fold a rotation into the weights first: of each value head, or of the residual "
        "stream too, which unties a tied lm_head (none)",
    )  # fmt: skip
    parser.add_argument("--lm-head", action="store_true", help="quantize lm_head too")
    parser.add_argument(
        "--keep-arch", action="store_true", help="keep Baichuan's names instead of LLaMA's"
    )
    parser.add_argument(
        "--restart", action="store_true", help="begin again, dropping an interrupted run"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def calib_options(args: argparse.Namespace) -> CalibOptions:
    """The calibration settings of parsed flags."""
    from bcquant.spec.recipe import CalibOptions

    return CalibOptions(args.calib, args.calib_tokens, args.seq_len, args.seed)


def with_effort(args: argparse.Namespace, recipe: Recipe) -> Recipe:
    """The recipe as --quality and --tune want it."""
    recipe = with_quality(recipe, args.quality)
    if args.tune is None:
        return recipe
    return with_tuning(recipe, args.tune)


def default_output(model: str, suffix: str) -> Path:
    """Where the result goes without -o: beside a local model, else in the current folder."""
    path = Path(model)
    if path.name in ("", "..") and path.exists():  # "." and the like have no name of their own
        path = path.resolve()
    stem = path.name.removesuffix(".gguf").removesuffix(".safetensors").removesuffix(".bin")
    folder = path.parent if path.exists() else Path()
    return folder / f"{stem.split('@')[0]}-{suffix}"


def output_folder(args: argparse.Namespace, suffix: str) -> Path:
    """Where the result goes: -o, or the default."""
    return Path(args.out) if args.out else default_output(args.model, suffix)


def run_recipe(args: argparse.Namespace, recipe: Recipe, suffix: str) -> int:
    """Quantize, then print the report."""
    from bcquant.cli.progress import progress_bar
    from bcquant.pipeline.quantize import quantize_model

    recipe = with_effort(args, recipe)
    out = output_folder(args, suffix)
    try:
        with progress_bar("modules", quiet=args.json) as bar:
            result = quantize_model(args.model, out, recipe, args.restart, bar)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command goes on from here") from stop
    if args.json:
        print(json.dumps({"out": str(out), **result.report}))
        return 0
    from rich.console import Console

    from bcquant.pipeline.report import candidate_seconds, tables

    console = Console()
    for table in tables(result.manifest, candidate_seconds(result.report)):
        console.print(table)
    if tuning := result.report.get("tuning"):
        kls = f"{tuning['kl_before']:.4g} -> {tuning['kl_after']:.4g} nats"
        kept = f"state of step {tuning['best_step']} kept, {tuning['seconds']:.0f} s"
        console.print(f"tuned: held-out KL {kls}, {kept}", markup=False, soft_wrap=True)
    for limit in result.report["reader_limits"]:
        console.print(f"note: {limit}", markup=False, soft_wrap=True)
    console.print(f"seed {recipe.calib.seed}, calibration {result.manifest.calibration['origin']}")
    console.print(f"written: {out}", soft_wrap=True)
    return 0
