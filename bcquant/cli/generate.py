"""`bcquant generate`: a model's continuation of a prompt, shown as it is made."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bcquant.cli.engine_flags import add_engine_flags
from bcquant.cli.verb import Verb

if TYPE_CHECKING:
    from bcquant.runtime.generation import Generation, TextEngine


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint folder, .gguf or .bcq file, or hub id"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to go on from")
    parser.add_argument(
        "--chat",
        action="store_true",
        help="send the prompt as a user's message, by the chat template",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="tokens at most (default: 128)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)"
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K best; 0 is all (default: 0)",
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P",
        help="draw from the best tokens that make up P (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R",
        help="above 1 makes seen tokens less likely (default: 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    add_engine_flags(parser, "auto")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of the text"
    )


def _run(args: argparse.Namespace) -> int:
    import sys

    from bcquant.runtime.sampling_options import SamplingOptions

    options = SamplingOptions(
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )  # before the model is read, so that a wrong flag is told at once
    from bcquant.runtime.engine_choice import open_engine

    engine = open_engine(
        args.model, args.engine, args.threads, args.precision,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    prompt: str | list[int] = args.prompt
    if args.chat:
        prompt = engine.tokenizer.encode_chat([{"role": "user", "content": args.prompt}])
    generation = engine.generate(prompt, args.max_new_tokens, options)
    pieces = []
    for piece in generation:
        pieces.append(piece)
        if not args.json:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if args.json:
        _print_json("".join(pieces), generation, engine)
        return 0
    stats = generation.stats
    assert stats is not None, "a finished generation has its statistics"
    print()
    print(
        f"{stats.num_prompt_tokens} prompt tokens in {stats.prefill_s:.2f} s, "
        f"{stats.num_new_tokens} new at {stats.tokens_per_s:.1f} tokens/s, "
        f"ended by {stats.stop_reason}",
        file=sys.stderr,
    )
    return 0


def _print_json(text: str, generation: Generation, engine: TextEngine) -> None:
    import dataclasses
    import json

    stats = generation.stats
    assert stats is not None, "a finished generation has its statistics"
    result = {
        "text": text,
        "ids": generation.ids,
        **dataclasses.asdict(stats),
        "tokens_per_s": stats.tokens_per_s,
        **engine.facts._asdict(),
    }
    print(json.dumps(result, ensure_ascii=False))


VERB = Verb(
    name="generate",
    help="continue a prompt, or answer it as a chat message",
    add_arguments=_add_arguments,
    run=_run,
    examples="""
        bcquant generate quantized --prompt "The capital of France is"
        bcquant generate model.bcq --engine native --prompt "Once upon a time"
        bcquant generate model.gguf --chat --prompt "Why is the sky blue?" --temperature 0.7
    """,
)
