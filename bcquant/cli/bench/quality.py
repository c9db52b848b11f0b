"""`bcquant bench quality MODEL`: perplexity against size, bcquant and its peers in one sweep."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant.cli.verb import Verb
from bcquant.errors import ConfigError

if TYPE_CHECKING:
    from bcquant.eval.sweep.rows import Row
    from bcquant.eval.sweep.run import SweepOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `bench quality`."""
    parser.add_argument("model", help="float checkpoint folder or GGUF file")
    parser.add_argument(
        "--text", action="append", default=[], metavar="[NAME=]FILE",
        help="text to judge on, repeatable; builtin = the part of pydoc_data.topics kept from "
        "calibration (builtin)",
    )  # fmt: skip
    parser.add_argument(
        "--calib", default="builtin", metavar="TEXT",
        help="text file or folder that all that calibrate read, or builtin (builtin)",
    )  # fmt: skip
    parser.add_argument(
        "--calib-tokens", type=int, default=16384, metavar="N", help="of calibration (16384)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses the calibration text (0)"
    )
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[4, 3, 2, 8], choices=(2, 3, 4, 8), metavar="N",
        help="bits a weight (4 3 2 8)",
    )  # fmt: skip
    parser.add_argument(
        "--group-size", type=int, nargs="+", default=[32, 64], metavar="N",
        help="columns that share a scale, -1 = row (32 64)",
    )  # fmt: skip
    parser.add_argument(
        "--schemes", nargs="+", default=["sym", "asym", "w8a16", "w8a8"], metavar="NAME",
        help="sym asym w8a16 w8a8 (all)",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="+", default=["default"], metavar="PRESET",
        help="presets of bcquant's own recipe (default)",
    )  # fmt: skip
    parser.add_argument(
        "--target-bpw", type=float, nargs="+", default=[], metavar="X",
        help="also bcquant with bits allocated per fused set, X stored bits a weight",
    )  # fmt: skip
    parser.add_argument(
        "--peers", nargs="+", default=["all"], metavar="NAME",
        help="other tools by name, all, or none; one that is not installed gets a row that says so "
        "(all)",
    )  # fmt: skip
    parser.add_argument(
        "--python", action="append", default=[], metavar="PEER=PATH",
        help="interpreter that has a peer, repeatable (the one that runs bcquant)",
    )  # fmt: skip
    parser.add_argument(
        "--match", nargs="+", default=[], metavar="TEXT",
        help="only points whose name, as in --list, starts with one of these",
    )  # fmt: skip
    parser.add_argument(
        "--eval-tokens", type=int, default=16384, metavar="N", help="of each text (16384)"
    )
    parser.add_argument(
        "--out", default="bench-quality", metavar="DIR",
        help="table, plot, JSON, and the finished rows that a later run takes (bench-quality)",
    )  # fmt: skip
    parser.add_argument("--no-speed", action="store_true", help="do not time the runtimes")
    parser.add_argument("--no-plot", action="store_true", help="no PNG and SVG, no matplotlib")
    parser.add_argument("--list", action="store_true", help="print the points and stop")
    parser.add_argument("--json", action="store_true", help="print the sweep as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Sweep; 1 where a point failed, which a peer that is not installed has not.

    Raises:
        ConfigError: a flag has a wrong value; else see `run_sweep`.
    """
    from bcquant.cli.progress import progress_bar
    from bcquant.eval.sweep.plot import require_matplotlib
    from bcquant.eval.sweep.run import planned, run_sweep

    options = _options(args)
    if args.list:
        print("\n".join(point.name for point in planned(options)))
        return 0
    if not args.no_plot:
        require_matplotlib()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    try:
        with progress_bar("points", quiet=args.json) as bar:
            for row in run_sweep(args.model, options, out, bar):
                rows.append(row)
                if row.problem:
                    print(f"{row.tool} {row.label}: {row.problem}", file=sys.stderr)
                _write(out, rows, options, args)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command goes on from here") from stop
    if args.json:
        print(json.dumps(_document(rows, options, args)))
    else:
        print((out / "quality.md").read_text(encoding="utf-8"))
        print(f"written: {out}")
    return 1 if any(row.problem.startswith("failed") for row in rows) else 0


def _options(args: argparse.Namespace) -> SweepOptions:
    from bcquant.eval.sweep.point import OURS, Wish, tool_names
    from bcquant.eval.sweep.recipes import QUALITIES, SCHEMES
    from bcquant.eval.sweep.run import SweepOptions
    from bcquant.spec.recipe import CalibOptions

    peers = [name for name in tool_names() if name != OURS]
    if args.peers == ["none"]:
        chosen: list[str] = []
    else:
        chosen = peers if args.peers == ["all"] else args.peers
    _check("--peers", chosen, peers)
    _check("--schemes", args.schemes, SCHEMES)
    _check("--quality", args.quality, QUALITIES)
    pythons = dict(_pair("--python", text) for text in args.python)
    _check("--python", pythons, (OURS, *peers))
    if args.eval_tokens < 2:
        raise ConfigError(f"--eval-tokens is {args.eval_tokens}; at least 2 are needed")
    return SweepOptions(
        texts=_texts(args.text or ["builtin"]),
        calib=CalibOptions(args.calib, args.calib_tokens, seed=args.seed),
        wish=Wish(
            tuple(args.bits),
            tuple(args.group_size),
            tuple(args.schemes),
            tuple(args.quality),
            tuple(args.target_bpw),
        ),
        tools=(OURS, *chosen),
        pythons={name: Path(path) for name, path in pythons.items()},
        eval_tokens=args.eval_tokens,
        match=tuple(args.match),
        measures_speed=not args.no_speed,
    )


def _texts(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, _, where = text.rpartition("=") if "=" in text else (Path(text).stem, "", text)
        if not name or not where or name in found:
            raise ConfigError(f"--text {text!r}: NAME=FILE is needed, each name once")
        found[name] = where
    return found


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{flag} {text!r}: NAME=VALUE is needed")
    return name, value


def _check(flag: str, given: Any, known: Any) -> None:
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ConfigError(f"{flag} {wrong[0]!r} is unknown; of {', '.join(known)}")


def _document(rows: list[Row], options: SweepOptions, args: argparse.Namespace) -> dict[str, Any]:
    from bcquant.eval.sweep.table import as_document

    return as_document(rows, list(options.texts), _facts(options, args))


def _facts(options: SweepOptions, args: argparse.Namespace) -> dict[str, Any]:
    from datetime import date

    from bcquant.eval.sweep.run import machine

    calib = options.calib
    return {
        "model": Path(args.model).name,
        "date": str(date.today()),
        "machine": machine(),
        "calibration": f"{calib.num_tokens} tokens of {calib.text}, seed {calib.seed}",
        "evaluation": f"{options.eval_tokens} tokens of each text in windows of up to 1024",
        "embedding and head": "float16 in every point",
    }


def _write(out: Path, rows: list[Row], options: SweepOptions, args: argparse.Namespace) -> None:
    """Table, JSON and plot of the rows so far, so that a killed sweep shows what it has."""
    from bcquant.eval.sweep.front import judged
    from bcquant.eval.sweep.plot import write_plot
    from bcquant.eval.sweep.table import markdown
    from bcquant.io.atomic import atomic_write_json, atomic_write_text

    texts = list(options.texts)
    atomic_write_json(out / "quality.json", _document(rows, options, args))
    atomic_write_text(out / "quality.md", markdown(rows, texts, _facts(options, args)))
    if not args.no_plot and any(judged(rows, text) for text in texts):
        write_plot(out / "quality", rows, texts, f"{Path(args.model).name}: perplexity and size")


VERB = Verb(
    name="quality",
    help="perplexity against size, bcquant and its peers in one resumable sweep",
    add_arguments=add_arguments,
    run=run,
    examples="""
    bcquant bench quality path/to/model --text en=book.txt --text zh=poems.txt --out sweep
    bcquant bench quality model.gguf --bits 4 --group-size 64 --schemes sym --peers none
    bcquant bench quality model.gguf --peers hqq llama_cpp --python hqq=venv/bin/python --no-speed
    """,
)
