"""`bcquant eval ppl MODEL`: figures of a checkpoint on text."""

from __future__ import annotations

import argparse
import json

from bcquant.cli.verb import Verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `eval`."""
    parser.add_argument("what", choices=("ppl",), help="ppl: strided perplexity")
    parser.add_argument("model", help="checkpoint folder, GGUF file or hub id; float or quantized")
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
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from dataclasses import asdict

    from bcquant.cli.progress import progress_bar
    from bcquant.eval.perplexity import evaluation_text, measure_perplexity
    from bcquant.models.source import open_model

    text = evaluation_text(args.text)
    with open_model(args.model) as source, progress_bar("layers", quiet=args.json) as bar:
        result = measure_perplexity(
            source, text, args.seq_len, args.stride, args.max_tokens,
            lambda done, total: bar(args.model, done, total),
        )  # fmt: skip
    if args.json:
        print(json.dumps({"model": str(args.model), "text": args.text, **asdict(result)}))
    else:
        print(
            f"perplexity {result.perplexity:.4f} on {result.num_tokens} tokens (windows of "
            f"{result.seq_len}, stride {result.stride}), {result.tokens_per_s:.0f} tokens/s"
        )
    return 0


VERB = Verb(
    name="eval",
    help="measure a checkpoint on text: perplexity",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant eval ppl path/to/model --text builtin
    bcquant eval ppl model.gguf --text book.txt --seq-len 2048 --stride 1024 --json
    """,
)
