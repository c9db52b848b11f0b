"""`bcquant eval ppl MODEL`: figures of a checkpoint on text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.cli.engine_flags import add_engine_flags
from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError

if TYPE_CHECKING:
    from bcquant.cli.progress import Bar
    from bcquant.eval.perplexity import PerplexityResult
    from bcquant.models.source import ModelSource
    from bcquant.runtime.generation import EngineFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `eval`."""
    parser.add_argument("what", choices=("ppl",), help="ppl: strided perplexity")
    parser.add_argument(
        "model", help="checkpoint folder, .gguf or .bcq file, or hub id; float or quantized"
    )
    parser.add_argument(
        "--text", default="builtin", metavar="FILE",
        help="text file or folder; builtin = the part of pydoc_data.topics kept from calibration",
    )  # fmt: skip
    parser.add_argument(
        "--seq-len", type=int, default=1024, metavar="N", help="tokens a window (1024)"
    )
    parser.add_argument("--stride", type=int, metavar="N", help="tokens between windows (seq-len)")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="use only the text's first N tokens"
    )
    add_engine_flags(parser, "torch")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from dataclasses import asdict

    from bcquant.cli.progress import progress_bar
    from bcquant.eval.perplexity import evaluation_text
    from bcquant.models.source import open_model
    from bcquant.runtime.engine_choice import check_threads

    check_threads(args.threads)
    text = evaluation_text(args.text)
    label = "windows" if args.engine == "native" else "layers"
    with progress_bar(label, quiet=args.json) as bar:
        if Path(args.model).suffix.lower() == ".bcq":
            result, facts = _measure_package(args, text, bar)
        else:
            with open_model(args.model) as source:
                measure = _measure_native if args.engine == "native" else _measure_torch
                result, facts = measure(args, source, text, bar)
    if args.json:
        said = {"model": str(args.model), "text": args.text, **asdict(result), **facts._asdict()}
        print(json.dumps(said))
    else:
        print(
            f"perplexity {result.perplexity:.4f} on {result.num_tokens} tokens (windows of "
            f"{result.seq_len}, stride {result.stride}), {result.tokens_per_s:.0f} tokens/s"
        )
    return 0


def _measure_package(
    args: argparse.Namespace, text: str, bar: Bar
) -> tuple[PerplexityResult, EngineFacts]:
    if args.engine != "native":
        raise ConfigError(
            f"{args.model}: a package runs in the native engine; give --engine native, or the "
            "checkpoint that it was made from"
        )
    from bcquant.eval.package_perplexity import package_perplexity
    from bcquant.kernels.runtime_native import RuntimeOptions
    from bcquant.runtime.engine_choice import physical_cores

    # What a package says is int8 in one of two ways, or that it has nothing but floats.
    is_exact = args.precision == "exact"
    options = RuntimeOptions(
        args.threads or physical_cores(),
        "exact" if is_exact else None,
        "f32" if is_exact else "f16",
    )
    return package_perplexity(
        args.model, text, args.seq_len, args.stride, args.max_tokens, options,
        lambda done, total: bar(args.model, done, total),
    )  # fmt: skip


def _measure_native(
    args: argparse.Namespace, source: ModelSource, text: str, bar: Bar
) -> tuple[PerplexityResult, EngineFacts]:
    from bcquant.eval.native_perplexity import native_scorer
    from bcquant.eval.perplexity import measure_perplexity
    from bcquant.runtime.engine_choice import physical_cores, why_torch
    from bcquant.runtime.generation import EngineFacts

    why_torch(source, "native")  # an error where the kernels cannot run it
    from bcquant.runtime.native_model import NativeModel, NativeOptions

    options = NativeOptions(args.threads or physical_cores(), args.precision or "int8")
    model = NativeModel.load(
        source, options, args.seq_len, say=lambda line: print(line, file=sys.stderr)
    )
    result = measure_perplexity(
        source, text, args.seq_len, args.stride, args.max_tokens,
        score=native_scorer(model, lambda done, total: bar(args.model, done, total)),
    )  # fmt: skip
    return result, EngineFacts("native", model.tier, options.num_threads, model.precision)


def _measure_torch(
    args: argparse.Namespace, source: ModelSource, text: str, bar: Bar
) -> tuple[PerplexityResult, EngineFacts]:
    import torch

    from bcquant.eval.perplexity import measure_perplexity
    from bcquant.runtime.generation import EngineFacts

    if args.precision == "int8":
        raise ConfigError("--precision int8 needs --engine native; torch computes exactly")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    result = measure_perplexity(
        source, text, args.seq_len, args.stride, args.max_tokens,
        lambda done, total: bar(args.model, done, total),
    )  # fmt: skip
    return result, EngineFacts("torch", None, torch.get_num_threads(), "float32")


VERB = Verb(
    name="eval",
    help="measure a checkpoint on text: perplexity",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant eval ppl path/to/model --text builtin
    bcquant eval ppl model.gguf --text book.txt --seq-len 2048 --stride 1024 --json
    bcquant eval ppl quantized --engine native --precision int8
    bcquant eval ppl model.bcq --engine native
    """,
)
