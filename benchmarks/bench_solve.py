"""Seconds, memory and perplexity of quantizing SmolLM2: `bcquant gptq` and gptqmodel's defaults.

Both read the same float16 folder and the same calibration windows, and run as processes of their
own on all cores, one after the other. seconds is wall time of the whole process, loading and
saving included; cpu_s user and system time; peak_mb the highest sum of VmHWM (anonymous and
file-backed pages) over the process and its children. Perplexity is of the builtin evaluation text,
windows of 1024 that do not overlap. bcquant runs its full set of candidates, which it chooses among
on an eighth of the windows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

if not __package__:  # run as a file: `python benchmarks/bench_solve.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant import __version__
from bcquant.calib.dataset import builtin_text
from bcquant.eval.perplexity import measure_perplexity
from bcquant.io.atomic import atomic_write_json
from bcquant.io.demo_model import fetch_demo_model
from bcquant.io.writer import TensorSpec, write_sharded
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import open_model
from bcquant.runtime.tokenizer_export import export_tokenizer
from benchmarks._machine import Load
from benchmarks._process import Cost, run_measured
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    package_version,
    results_path,
    write_results,
)

JSON_NAME = "solve.json"
BITS, SEED, EVAL_WINDOW = 4, 0, 1024
GPTQMODEL = Path(__file__).parent / "peers" / "gptqmodel_child.py"
NEEDED_SPEED = 5.0
EXAMPLES = """examples:
  python -m benchmarks.bench_solve                    16 k tokens, all layers: ten minutes
  python -m benchmarks.bench_solve --quick            1 layer, 256 tokens: does it run at all
  python -m benchmarks.bench_solve --impls bcquant --repeat 3
"""


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        source = Path(folder) / "float"
        write_float(fetch_demo_model(), source, args.layers)
        costs: dict[str, list[Cost]] = {impl: [] for impl in args.impls}
        others: dict[str, float | None] = {}
        for count in range(args.repeat):
            for impl in args.impls:
                out = Path(folder) / f"{impl}-{count}"
                with Load([]) as load:
                    costs[impl].append(run_measured(_command(impl, source, out, args)))
                others[impl] = _without_children(load, costs[impl][-1])
                print(f"{impl}: {costs[impl][-1]}", flush=True)
        perplexity = {
            impl: _perplexity(Path(folder) / f"{impl}-0", args.eval_tokens) for impl in args.impls
        }
        perplexity["float"] = _perplexity(source, args.eval_tokens)
        notes = [" ".join(__doc__.split()), _scale(args), f"float: {perplexity['float']:.3f}"]
        if "bcquant" in args.impls:
            notes += candidate_costs(Path(folder) / "bcquant-0" / "quant_report.json")
    rows = [_row(impl, costs, perplexity, others, args) for impl in args.impls]
    path = results_path(args, JSON_NAME)
    judged = targets([] if args.layers else rows)  # a cut model's perplexity means nothing
    text = write_results(path, "Quantizing SmolLM2-135M", rows, judged, notes)
    print(text + f"written: {path}")


def write_float(model: Path, folder: Path, num_layers: int | None) -> None:
    """The demo model's first layers as a float16 folder, which both read."""
    with open_model(model) as source:
        count = num_layers or source.config.num_layers
        cfg = replace(source.config, num_layers=count, windows=source.config.windows[:count])
        names = [n for n in source.names() if _layer(n) < count]
        specs = [TensorSpec(n, "F16", source.shape(n)) for n in names]
        folder.mkdir(parents=True)
        write_sharded(
            folder, specs, lambda n: source.weight(n).astype(np.float16), 1 << 31, {"format": "pt"}
        )
        atomic_write_json(folder / "config.json", to_hf_config(cfg, "float16"))
    export_tokenizer(model, folder)


def _layer(name: str) -> int:
    """Layer of a canonical tensor; -1 for the embedding, the last norm and the head."""
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def _command(impl: str, source: Path, out: Path, args: argparse.Namespace) -> list[str]:
    size, tokens = str(args.group_size), str(args.calib_tokens)
    if impl == "gptqmodel":
        paths = [str(GPTQMODEL), str(source), str(out)]
        return [sys.executable, *paths, str(BITS), size, tokens, str(SEED)]
    return [
        sys.executable, "-m", "bcquant", "gptq", str(source), "-o", str(out), "--bits", str(BITS),
        "--group-size", size, "--calib-tokens", tokens, "--seed", str(SEED), "--json",
    ]  # fmt: skip


def _without_children(load: Load, cost: Cost) -> float | None:
    """Cores kept busy by others: `load` does not know the processes that have ended."""
    return (
        None if load.cores is None else round(max(0.0, load.cores - cost.cpu_s / cost.seconds), 2)
    )


def _perplexity(path: Path, num_tokens: int) -> float:
    with open_model(path) as source:
        text = builtin_text("evaluation")
        return measure_perplexity(source, text, EVAL_WINDOW, None, num_tokens).perplexity


def candidate_costs(report: Path) -> list[str]:
    """A line for each kind of candidate: how often it was tried and kept, and what it cost."""
    modules = json.loads(report.read_text())["modules"]
    seconds: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for row in modules:
        for label, value in row["candidate_seconds"].items():
            seconds[_kind(label)] += value
        tried.update(_kind(label) for label in row["losses"])
    kept = Counter(_kind(row["candidate"]) for row in modules)
    return [
        f"candidate {kind}: {tried[kind]} tried, {kept[kind]} kept, {cost:.1f} s"
        for kind, cost in seconds.most_common()
    ]


def _kind(label: str) -> str:
    """A candidate without the strength of its retargeting."""
    return re.sub(r"retarget[0-9.]+", "retarget", label)


def _row(
    impl: str,
    costs: dict[str, list[Cost]],
    perplexity: dict[str, float],
    others: dict[str, float | None],
    args: argparse.Namespace,
) -> Row:
    seconds = {name: median(c.seconds for c in found) for name, found in costs.items()}
    is_version = impl == "gptqmodel"
    return make_row(
        impl, package_version("gptqmodel") if is_version else f"bcquant {__version__}", "quantize",
        shape=(None, None, args.calib_tokens), group_size=args.group_size,
        threads=os.cpu_count() or 1, median_us=seconds[impl] * 1e6,
        ratio_to={n: s / seconds[impl] for n, s in seconds.items() if n != impl},
        bits=BITS, layers=args.layers or "all", seconds=seconds[impl],
        cpu_s=median(c.cpu_s for c in costs[impl]), peak_mb=max(c.peak_mb for c in costs[impl]),
        perplexity=perplexity[impl], perplexity_float=perplexity["float"],
        others_cores=others[impl],
    )  # fmt: skip


def targets(rows: list[Row]) -> list[Target]:
    """Five times as fast, with the better perplexity."""
    by_impl = {row["impl"]: row for row in rows}
    ours, theirs = by_impl.get("bcquant"), by_impl.get("gptqmodel")
    speed = ours["ratio_to"].get("gptqmodel") if ours else None
    better = theirs["perplexity"] / ours["perplexity"] if ours and theirs else None
    return [
        Target("wall time against gptqmodel", speed, NEEDED_SPEED, ours and ours["others_cores"]),
        Target("gptqmodel's perplexity over bcquant's", better, 1.0),
    ]


def _scale(args: argparse.Namespace) -> str:
    layers = "all layers"
    if args.layers:
        layers = f"only the first {args.layers} of 30 layers, whose perplexity means nothing"
    return f"{args.calib_tokens} calibration tokens, {args.eval_tokens} of evaluation, {layers}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    impls = ("bcquant", "gptqmodel")
    parser.add_argument("--impls", nargs="+", choices=impls, default=list(impls))
    parser.add_argument("--layers", type=int, metavar="N", help="only the first N layers")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--calib-tokens", type=int, metavar="N", help="16384")
    parser.add_argument("--eval-tokens", type=int, metavar="N", help="8192")
    add_common_arguments(parser, JSON_NAME, has_threads=False)
    args = parser.parse_args()
    args.layers = args.layers or (1 if args.quick else None)
    args.calib_tokens = args.calib_tokens or (256 if args.quick else 16384)
    args.eval_tokens = args.eval_tokens or (1024 if args.quick else 8192)
    args.repeat = args.repeat or 1
    return args


if __name__ == "__main__":
    main()
