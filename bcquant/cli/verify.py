"""`bcquant verify SOURCE EXPORT`: run both on the same tokens; prove or refute the export."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from bcquant.eval.verify.certificate import Certificate, Check
    from bcquant.eval.verify.run import VerifyOptions

# Figures that the table shows, by check; "{key}" is a figure's name.
_SHOWN = {
    "tokens": "{different} of {texts} texts differ",
    "weights": "{different} of {tensors} tensors differ, by {error:.2g} at most",
    "settings": "{different} of {settings} settings differ",
    "rounding": "layer 0 differs by {error:.2g}",
    "logits": "error {relative_error:.2g}, KL {kl_mean:.2g} (99.9 %: {kl_999:.2g}), "
    "top-1 {top1:.2%}",
    "perplexity": "{source:.5g} to {export:.5g} ({change:+.2g})",
    "greedy": "{tokens} tokens, {ties} ties, gap {gap:.2g}",
}
_SHOWN["graph"] = _SHOWN["logits"]
_LIMITS = {
    "tokens": "0",
    "weights": "{error:.2g}",
    "settings": "0",
    "rounding": "{error:.2g}",
    "logits": "{relative_error:.2g}, {kl_mean:.2g} ({kl_999:.2g}), {top1:.2%}",
    "perplexity": "{change:.2g}",
    "greedy": "{gap:.2g}",
}
_LIMITS["graph"] = _LIMITS["logits"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `verify`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="the checkpoint: folder, GGUF file or hub id"
    )
    parser.add_argument(
        "export",
        metavar="EXPORT",
        help="what was made from it: .gguf or .bcq file, ONNX or model folder",
    )
    parser.add_argument(
        "--text", default="builtin", metavar="FILE",
        help="text file or folder; builtin = the part of pydoc_data.topics kept from calibration",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int, default=2048, metavar="N", help="of the text (2048)"
    )
    parser.add_argument(
        "--seq-len", type=int, default=512, metavar="N", help="tokens a window (512)"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="prompts for greedy decoding, one a line (3 built in)"
    )
    parser.add_argument(
        "--new-tokens", type=int, default=64, metavar="N", help="greedy tokens a prompt (64)"
    )
    parser.add_argument(
        "--backend", metavar="NAME",
        help="what runs the export: llama_cpp, onnxruntime, onnxruntime_genai, transformers, "
        "bcq_runtime, core (by its files)",
    )  # fmt: skip
    parser.add_argument(
        "--max-weight-error", type=float, default=0.0, metavar="E",
        help="accept this relative error of a tensor: for exports made with --allow-lossy (0)",
    )  # fmt: skip
    parser.add_argument(
        "--no-certificate", action="store_true", help="write no certificate.json to the export"
    )
    parser.add_argument("--json", action="store_true", help="print the certificate on stdout")


def run(args: argparse.Namespace) -> int:
    """Compare, print and write the certificate; 1 if the export is not what the source is."""
    from pathlib import Path

    from bcquant.cli.progress import progress_bar
    from bcquant.eval.verify.certificate import write_certificate
    from bcquant.eval.verify.run import verify

    export = Path(args.export)
    with progress_bar("", quiet=args.json) as bar:
        found = verify(args.source, export, _options(args), bar)
    written = None if args.no_certificate else write_certificate(export, found)
    if args.json:
        print(json.dumps(found.as_dict()))
        return 0 if found.passed else 1
    from rich.console import Console

    Console(highlight=False).print(verdict_table(found))
    for check in found.checks:
        if check.problem is not None:
            print(f"{check.name}: {check.problem}")
    if found.diverges is not None:
        print(f"first difference: {found.diverges}")
    if written is not None:
        print(f"certificate: {written}", file=sys.stderr)
    print("pass" if found.passed else "fail")
    return 0 if found.passed else 1


def verdict_table(found: Certificate) -> Table:
    """A row for every check: figures, limits, verdict."""
    from rich.table import Table

    kind = found.thresholds
    title = f"{found.backend}, {found.seconds:.0f} s; limits for {kind.kind}: {kind.means}"
    table = Table(title=title, title_justify="left")
    for heading in ("check", "measured", "limit", "verdict"):
        table.add_column(heading, overflow="fold")
    for check in found.checks:
        table.add_row(check.name, _shown(check), _limit(check), "ok" if check.passed else "FAIL")
    return table


def _shown(check: Check) -> str:
    return _SHOWN[check.name].format(**check.figures)


def _limit(check: Check) -> str:
    return _LIMITS[check.name].format(**check.limits)


def _options(args: argparse.Namespace) -> VerifyOptions:
    from bcquant.eval.perplexity import evaluation_text
    from bcquant.eval.verify.run import PROMPTS, VerifyOptions

    return VerifyOptions(
        text=evaluation_text(args.text),
        text_name=args.text,
        max_tokens=args.max_tokens,
        seq_len=args.seq_len,
        prompts=PROMPTS if args.prompts is None else _read_prompts(args.prompts),
        new_tokens=args.new_tokens,
        backend=args.backend,
        max_weight_error=args.max_weight_error,
    )


def _read_prompts(path: str) -> tuple[str, ...]:
    from pathlib import Path

    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}; convert it") from error
    prompts = tuple(line for line in lines if line.strip())
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt; one a line is needed")
    return prompts


VERB = Verb(
    name="verify",
    help="run an export and its source on the same tokens; prove or refute it",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant verify model-gptq model.gguf
    bcquant verify model-gptq model-onnx --text book.txt --max-tokens 8192
    bcquant verify model-gptq model-onnx --backend onnxruntime --json
    bcquant verify model-gptq model-q4_1.gguf --max-weight-error 0.01
    """,
)
