"""`bcquant bench decode MODEL`: tokens/s, time to the first token, and memory on this machine."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError

if TYPE_CHECKING:
    from bcquant.eval.decode_speed import DecodeFigures, Spread
    from bcquant.kernels.runtime_native import RuntimeOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench decode`."""
    parser.add_argument(
        "model", metavar="MODEL",
        help=".bcq package; a checkpoint folder, GGUF file or hub id is exported to one first",
    )  # fmt: skip
    for flag, default, what in (
        ("--prompt-tokens", 256, "of the prompt"),
        ("--tokens", 64, "new ones, drawn greedily"),
        ("--repeats", 5, "that are counted, after one to warm up"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="default: the physical cores that may be used"
    )
    parser.add_argument(
        "--cache", choices=("f32", "f16", "int8"), default="f16",
        help="type of keys and values (default: f16)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=("exact", "int8"),
        help="activations float32 (exact) or int8 per group (default: as the package says)",
    )  # fmt: skip
    parser.add_argument("--tier", metavar="NAME", help="of the kernels (default: this CPU's best)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        ConfigError: a number is out of range, or the package has too few positions.
    """
    from bcquant.cli.bench._package_of import package_of
    from bcquant.cli.progress import progress_bar
    from bcquant.eval.decode_speed import measure_decode
    from bcquant.kernels.runtime_native import RuntimeOptions
    from bcquant.runtime.engine_choice import check_threads, physical_cores

    check_threads(args.threads)
    for flag, value, least in (
        ("--prompt-tokens", args.prompt_tokens, 1),
        ("--tokens", args.tokens, 2),
        ("--repeats", args.repeats, 1),
    ):
        if value < least:
            raise ConfigError(f"{flag} is {value}; at least {least} is needed")
    options = RuntimeOptions(
        args.threads or physical_cores(), args.precision, args.cache, tier=args.tier
    )
    with package_of(args.model, args.json) as path, progress_bar("tokens", args.json) as bar:
        figures = measure_decode(path, args.prompt_tokens, args.tokens, args.repeats, options, bar)
    if args.json:
        print(json.dumps(_as_json(args, options, figures)))
    else:
        _print(args, options, figures)
    return 0


def _as_json(
    args: argparse.Namespace, options: RuntimeOptions, figures: DecodeFigures
) -> dict[str, object]:
    return {
        "model": str(args.model),
        "prompt_tokens": args.prompt_tokens,
        "tokens": args.tokens,
        "repeats": args.repeats,
        "threads": options.num_threads,
        "cache": options.kv_type,
        "tier": figures.tier,
        "activations": figures.activations,
        "open_s": figures.open_s,
        "prefill_tokens_per_s": figures.prefill._asdict(),
        "decode_tokens_per_s": figures.decode._asdict(),
        "first_token_s": figures.first_token_s._asdict(),
        "plan": figures.plan._asdict(),
        "resident_bytes": figures.resident_bytes,
        "before_bytes": figures.before_bytes,
    }


def _print(args: argparse.Namespace, options: RuntimeOptions, figures: DecodeFigures) -> None:
    threads = f"{options.num_threads} thread{'s' if options.num_threads > 1 else ''}"
    plan = figures.plan
    rows = (
        ("engine", f"tier {figures.tier}, {threads}, {figures.activations}, {args.cache} cache"),
        ("prefill", f"{_rate(figures.prefill)}, {args.prompt_tokens} tokens"),
        ("decode", f"{_rate(figures.decode)}, {args.tokens} tokens"),
        ("first token", _seconds(figures.first_token_s)),
        ("open", f"{1e3 * figures.open_s:.1f} ms"),
        ("plan", f"{plan.total_bytes / 1e6:.1f} MB, {plan.weight_bytes / 1e6:.1f} of it mapped"),
        ("resident", _resident(figures)),
        ("repeats", f"{args.repeats}: median (lowest to highest)"),
    )
    for label, value in rows:
        print(f"{label:<13}{value}")


def _rate(spread: Spread) -> str:
    return f"{spread.median:.1f} tokens/s ({spread.lowest:.1f} to {spread.highest:.1f})"


def _seconds(spread: Spread) -> str:
    median, lowest, highest = (1e3 * value for value in spread)
    return f"{median:.1f} ms ({lowest:.1f} to {highest:.1f}), with the model open"


def _resident(figures: DecodeFigures) -> str:
    if figures.resident_bytes is None or figures.before_bytes is None:
        return "not known on this system"
    whole, before = figures.resident_bytes / 1e6, figures.before_bytes / 1e6
    return f"{whole:.1f} MB, {before:.1f} of it before the package was opened"


VERB = Verb(
    name="decode",
    help="measure prefill and decode in tokens/s, time to the first token, and memory",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant bench decode model.bcq
    bcquant bench decode model.bcq --prompt-tokens 1024 --tokens 128 --threads 1 --cache int8
    bcquant bench decode quantized --repeats 9 --json
    """,
)
