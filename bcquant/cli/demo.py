"""`bcquant demo`: fetch a small real model, quantize it, show it before and after."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.cli.verb import Verb

if TYPE_CHECKING:
    from rich.table import Table

    from bcquant.spec.recipe import Recipe

DEFAULT_OUT = "demo-output"


@dataclass(frozen=True)
class Showing:
    """A model as the demo shows it.

    Attributes:
        linear_bits: stored bits per weight of the Linear modules.
        total_bytes: of all tensors, in the form that is being compared.
        sentence: its greedy continuation of the prompt.
    """

    label: str
    perplexity: float
    num_tokens: int
    linear_bits: float
    total_bytes: int
    sentence: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `demo`."""
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help=f"folder to create ({DEFAULT_OUT}, replaced if it is ours)",
    )
    parser.add_argument(
        "--calib-tokens", type=int, default=16384, metavar="N", help="calibration tokens (16384)"
    )
    parser.add_argument(
        "--eval-tokens", type=int, default=8192, metavar="N",
        help="tokens that perplexity is taken on, none of them seen by calibration (8192)",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", default="The capital of France is", metavar="TEXT", help="text to go on from"
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, quantize, compare.

    Raises:
        ExportError: the output folder is there and is not an earlier demo's.
    """
    from bcquant.errors import ExportError
    from bcquant.io.demo_model import fetch_demo_model
    from bcquant.spec.quant_format import QuantFormat
    from bcquant.spec.recipe import CalibOptions, Recipe

    recipe = Recipe(
        format=QuantFormat(bits=4, group_size=64), calib=CalibOptions(num_tokens=args.calib_tokens)
    )
    out = Path(args.out or DEFAULT_OUT)
    if args.out is None:
        _clear_own_output(out)
    if out.exists():
        raise ExportError(f"{out}: exists and is no earlier demo; remove it or choose another -o")
    start = time.monotonic()
    model = fetch_demo_model(say=_say)
    before = _show("before, as float16", model, args, is_float=True)
    _quantize(model, out, recipe)
    after = _show("after, 4-bit GPTQ", out, args, is_float=False)
    _print_report(before, after, model, out, time.monotonic() - start)
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _clear_own_output(out: Path) -> None:
    """Remove what an earlier demo wrote; anything else is left for the run to refuse."""
    from bcquant.spec.manifest import MANIFEST_NAME

    if (out / MANIFEST_NAME).is_file():
        shutil.rmtree(out)


def _quantize(model: Path, out: Path, recipe: Recipe) -> None:
    from bcquant.cli.progress import progress_bar
    from bcquant.pipeline.quantize import quantize_model

    _say(f"quantizing to {out}")
    with progress_bar("modules") as bar:
        quantize_model(model, out, recipe, progress=bar)


def _show(label: str, path: Path, args: argparse.Namespace, is_float: bool) -> Showing:
    """Measure one of the two models and let it speak."""
    from bcquant.cli.progress import progress_bar
    from bcquant.eval.perplexity import evaluation_text, measure_perplexity
    from bcquant.loaders._collect import collect_facts
    from bcquant.loaders._facts import linear_bits_per_weight
    from bcquant.models.source import open_model
    from bcquant.runtime.engine import Engine

    with open_model(path) as source, progress_bar("layers") as bar:
        figures = measure_perplexity(
            source, evaluation_text("builtin"), seq_len=512, max_tokens=args.eval_tokens,
            progress=lambda done, total: bar(f"perplexity {label}", done, total),
        )  # fmt: skip
    facts = collect_facts(str(path))
    bits = 16.0 if is_float else linear_bits_per_weight(facts)
    size = 2 * facts.num_weights if is_float else sum(row.num_bytes for row in facts.rows)
    engine = Engine.load(path)
    generation = engine.generate(args.prompt, max_new_tokens=24, stop=("\n",))
    sentence = args.prompt + "".join(generation)
    return Showing(label, figures.perplexity, figures.num_tokens, bits, size, sentence)


def comparison_table(before: Showing, after: Showing) -> Table:
    """Figures of the two side by side, and the change."""
    from rich.table import Table

    table = Table(title=f"perplexity on {before.num_tokens} held-out tokens, and size")
    for heading in ("", "perplexity", "bits per Linear weight", "tensors, MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for model in (before, after):
        table.add_row(
            model.label,
            f"{model.perplexity:.3f}",
            f"{model.linear_bits:.2f}",
            f"{model.total_bytes / 1e6:.1f}",
        )
    table.add_row(
        "change",
        f"{100 * (after.perplexity / before.perplexity - 1):+.2f} %",
        f"{100 * (after.linear_bits / before.linear_bits - 1):+.1f} %",
        f"{100 * (after.total_bytes / before.total_bytes - 1):+.1f} %",
    )
    return table


def _print_report(before: Showing, after: Showing, model: Path, out: Path, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(comparison_table(before, after))
    sentences = Table(title="what each goes on to say, greedily")
    sentences.add_column("")
    sentences.add_column("text", overflow="fold")
    for showing in (before, after):
        sentences.add_row(showing.label, Text(showing.sentence))
    console.print(sentences)
    console.print(
        f"The model comes as a GGUF file of {model.stat().st_size / 1e6:.1f} MB, itself rounded to "
        "5 bits; it is read as float, and that is the 'before'. The embedding stays float16.",
        markup=False,
    )
    console.print(f"written: {out} ({seconds:.0f} s in all)", markup=False, soft_wrap=True)
    console.print(f"next: bcquant inspect {out}", markup=False, soft_wrap=True)


VERB = Verb(
    name="demo",
    help="quantize a small real model to 4 bits and compare it with the original",
    add_arguments=add_arguments,
    run=run,
    examples="""
        bcquant demo
        bcquant demo -o smollm2-4bit --prompt "Water boils at"
    """,
)
