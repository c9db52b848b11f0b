"""One 4-bit GPTQ checkpoint through our exporters and through the usual routes.

Every route starts from the same folder and runs as processes of its own, one after the other;
seconds is the wall time of all its commands, peak_mb the highest VmHWM of one of them. What comes
out is then read and run here: `changed` is the share of the Linear weights' integers that are not
the checkpoint's, `scale_change` the largest relative change of a scale, float_error the largest
relative error of an embedding or norm, and kl_mean, kl_999 (nats), top1 and perplexity compare its
logits with those of the checkpoint in float32 on the builtin
evaluation text, windows of 512. Runtimes are at their defaults, so where they round activations to
int8 that is in the figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

if not __package__:  # run as a file: `python benchmarks/bench_export.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant.calib.dataset import I64Array, builtin_text
from bcquant.eval.verify.agreement import Agreement
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.eval.verify.backends.llama_cpp import LlamaCppBackend
from bcquant.eval.verify.checks import compare_logits
from bcquant.eval.verify.export_facts import open_export
from bcquant.eval.verify.stored_weights import StoredWeights, TensorDiff, compare_weights
from bcquant.io.atomic import atomic_write_json
from bcquant.io.writer import TensorSpec, write_sharded
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.tokenizer_export import export_tokenizer
from benchmarks._process import Cost, run_measured
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    results_path,
    write_results,
)
from benchmarks.peers.builder_weights import BuilderWeights
from benchmarks.peers.export_routes import OPTIMUM_PYTHON, Route, routes
from benchmarks.peers.onnx_graph import OnnxGraph

JSON_NAME = "export.json"
WINDOW = 512
EXAMPLES = """examples:
  bcquant gptq ~/.cache/bcquant/SmolLM2-135M-Instruct.Q4_1.gguf -o smol --group-size 64
  make bench-peers                               a venv with optimum-onnx
  python -m benchmarks.bench_export smol
"""


def main() -> None:
    args = _arguments()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        work = Path(folder)
        floats = work / "floats"
        with open_model(args.model) as source:
            write_float32(source, floats)
        for route in routes(args.model, floats, work, args.optimum_python):
            if args.impls and route.impl not in args.impls:
                continue
            costs = [run_measured(list(command)) for command in route.commands]
            rows.append(judge(route, args.model, costs, args))
            print(rows[-1], flush=True)
    path = results_path(args, JSON_NAME)
    notes = [" ".join(__doc__.split()), f"{args.max_tokens} tokens of evaluation"]
    print(write_results(path, "Routes out of a GPTQ checkpoint", rows, targets(rows), notes))
    print(f"written: {path}")


def write_float32(source: ModelSource, folder: Path) -> None:
    """The checkpoint's own weights, dequantized exactly: what float exporters can read."""
    specs = [TensorSpec(name, "F32", source.shape(name)) for name in source.names()]
    write_sharded(folder, specs, source.weight, 1 << 32, {"format": "pt"})
    atomic_write_json(folder / "config.json", to_hf_config(source.config, "float32"))
    export_tokenizer(source.path, folder)


def judge(route: Route, model: Path, costs: Sequence[Cost], args: argparse.Namespace) -> Row:
    """What one route made, read and run."""
    packed, floats = _diffs(route, model)
    agreement = _agreement(route, model, args.max_tokens)
    seconds = sum(cost.seconds for cost in costs)
    return make_row(
        route.impl, route.version, route.op, threads=os.cpu_count() or 1,
        median_us=seconds * 1e6, seconds=seconds, peak_mb=max(cost.peak_mb for cost in costs),
        size_mb=_size_mb(route.out),
        changed=float(np.mean([d.changed for d in packed])) if packed else None,
        scale_change=max((d.scale_change for d in packed), default=None),
        float_error=max((d.error for d in floats), default=None),
        kl_mean=agreement.kl_mean, kl_999=agreement.kl_999, top1=agreement.top1,
        perplexity=agreement.perplexity[1], perplexity_source=agreement.perplexity[0],
    )  # fmt: skip


def _diffs(route: Route, model: Path) -> tuple[list[TensorDiff], list[TensorDiff]]:
    """Quantized weights and floats against the checkpoint's; [] where nothing has their names."""
    with open_model(model) as source:
        stored: StoredWeights
        if route.impl == "optimum-onnx":
            return [], []
        if route.impl.endswith("builder"):
            stored = BuilderWeights(route.out, source.config)
        else:
            stored = open_export(route.out)
        with closing(stored):
            found = compare_weights(source, stored, lambda *said: None)
        packed = [d for d in found if source.stored_dtype(d.name) == "quantized"]
        return packed, [d for d in found if d not in packed]


def _agreement(route: Route, model: Path, max_tokens: int) -> Agreement:
    with closing(CoreBackend(open_model(model))) as source:
        text = builtin_text("evaluation")
        ids: I64Array = np.asarray(source.text_ids(text)[:max_tokens], np.int64)
        windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
        export: LlamaCppBackend | OnnxGraph
        if route.out.is_dir():  # the graph itself: onnxruntime-genai is no other arithmetic
            export = OnnxGraph(route.out, source.config)
        else:
            export = LlamaCppBackend(route.out, WINDOW)
        with closing(export):
            return compare_logits([(source, export)], windows, lambda *said: None)[0]


def _size_mb(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def targets(rows: Sequence[Row]) -> list[Target]:
    """Our routes change nothing, which a share of unchanged integers of 1 says."""
    ours = [row for row in rows if row["impl"] == "bcquant"]
    kept = min((1 - row["changed"] for row in ours), default=None)
    return [Target("unchanged integers, worst of our routes", kept, 1.0)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a 4-bit GPTQ folder")
    parser.add_argument("--impls", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="2048")
    parser.add_argument(
        "--optimum-python", type=Path, default=OPTIMUM_PYTHON, metavar="PATH",
        help="interpreter with optimum-onnx (.venv-optimum, `make bench-peers`)",
    )  # fmt: skip
    add_common_arguments(parser, JSON_NAME, has_threads=False)
    args = parser.parse_args()
    args.max_tokens = args.max_tokens or (WINDOW if args.quick else 2048)
    return args


if __name__ == "__main__":
    main()
