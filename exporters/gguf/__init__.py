"""GGUF for llama.cpp: the checkpoint's integers in block types that hold them exactly."""

from __future__ import annotations

import argparse
from pathlib import Path

from bcquant.errors import ConfigError
from bcquant.models.source import ModelSource
from bcquant.spec.export_plan import Exporter, ExportJob

from .options import ASYM_AS, EMBEDDING_BITS, UNFIT_AS, GgufOptions


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--asym-as", choices=ASYM_AS, default=GgufOptions.asym_as,
        help="4-bit asymmetric groups below 256: exact (Q5_0, 5.5 bits a weight) or q4_1 (5 bits, "
        "minimums rounded to float16) (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--unfit-as", choices=UNFIT_AS, default=GgufOptions.unfit_as,
        help="weights that no block type holds: f16 (rounded) or f32 (exact) (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--embedding-bits", type=int, choices=EMBEDDING_BITS, default=GgufOptions.embedding_bits,
        help="round a float embedding and head to 8 bits (Q8_0); needs --allow-lossy (default: "
        "%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, metavar="TOKENS",
        help="longest text to declare; within its sliding window a model needs none, and "
        "llama.cpp has none for these (default: the model's own)",
    )  # fmt: skip


def _options(args: argparse.Namespace) -> GgufOptions:
    if args.context is not None and args.context < 1:
        raise ConfigError(f"--context is {args.context}; 1 token or more is needed")
    return GgufOptions(
        args.asym_as, args.unfit_as, args.embedding_bits, args.context, args.allow_lossy
    )


def _default_out(source: Path) -> Path:
    name = source.stem if source.is_file() else source.resolve().name
    return Path(f"{name}.gguf")


def _prepare(source: ModelSource, options: GgufOptions) -> ExportJob:
    from .job import GgufJob

    return GgufJob(source, options)


EXPORTER = Exporter(
    name="gguf",
    help="write one GGUF file for llama.cpp, with the checkpoint's own integers",
    add_arguments=_add_arguments,
    options=_options,
    default_out=_default_out,
    prepare=_prepare,
    examples="""
    bcquant export gguf model-gptq -o model.gguf
    bcquant export gguf model-gptq-asym --asym-as q4_1 --allow-lossy
    bcquant export gguf mistral-7b-gptq --context 4096
    bcquant export gguf model-gptq --dry-run
    """,
)
