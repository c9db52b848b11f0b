"""`bcquant verify` of every export of some checkpoints, in one table.

Each checkpoint is exported with `bcquant export` (ONNX ort, ONNX ort at accuracy level 0, ONNX std,
onnxruntime-genai, GGUF) and compared with its source by `bcquant verify` at its defaults: 2,048
tokens of the builtin evaluation text in windows of 512, and 64 greedy tokens of each of three
prompts. `tokens` and `weights` count what differs; kl_mean and kl_999 are in nats, of the export as
its program runs it; graph_kl is without the rounding of activations that a runtime adds, where the
runtime can leave it out; ties are greedy steps where another token was chosen, the source's own
logits being within the tie that the certificate allows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: `python benchmarks/bench_verify.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant import __version__
from benchmarks._process import run_measured
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    package_version,
    results_path,
    write_results,
)

JSON_NAME = "verify.json"
EXPORTS: dict[str, tuple[str, ...]] = {
    "onnx ort": ("onnx",),
    "onnx ort, level 0": ("onnx", "--accuracy-level", "0"),
    "onnx std": ("onnx", "--variant", "std"),
    "onnx genai": ("onnx", "--target", "genai"),
    "gguf": ("gguf",),
}
PACKAGES = {
    "onnxruntime": "onnxruntime",
    "onnxruntime_genai": "onnxruntime-genai",
    "llama_cpp": "llama-cpp-python",
}
BCQUANT = (sys.executable, "-m", "bcquant")


def main() -> None:
    args = _arguments()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        for model in args.models:
            for op, flags in EXPORTS.items():
                out = Path(folder) / f"{model.name}{len(rows)}{'.gguf' * (op == 'gguf')}"
                command = [*BCQUANT, "export", flags[0], str(model), "-o", str(out), *flags[1:]]
                cost = run_measured(command)
                certificate = verify(model, out, args.quick)
                rows.append(_row(model, op, out, cost.seconds, certificate))
                print(rows[-1], flush=True)
    notes = [" ".join(__doc__.split())]
    path = results_path(args, JSON_NAME)
    print(write_results(path, "Exports against their checkpoints", rows, targets(rows), notes))
    print(f"written: {path}")


def verify(model: Path, out: Path, is_quick: bool) -> dict[str, Any]:
    """The certificate that `bcquant verify --json` prints; exit status 1 is a verdict, too."""
    few = ("--max-tokens", "256", "--seq-len", "256") if is_quick else ()
    command = [*BCQUANT, "verify", str(model), str(out), "--json", *few]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _row(model: Path, op: str, out: Path, export_s: float, certificate: dict[str, Any]) -> Row:
    checks = {check["name"]: check["figures"] for check in certificate["checks"]}
    files = [out] if out.is_file() else [p for p in out.rglob("*") if p.is_file()]
    backend = certificate["backend"]
    return make_row(
        PACKAGES[backend],
        f"{package_version(PACKAGES[backend])}, bcquant {__version__}",
        op,
        threads=os.cpu_count() or 1, median_us=certificate["seconds"] * 1e6,
        model=model.name, export_s=export_s, verify_s=certificate["seconds"],
        size_mb=sum(file.stat().st_size for file in files) / 1e6,
        tokens=checks["tokens"]["different"], weights=checks["weights"]["different"],
        kl_mean=checks["logits"]["kl_mean"], kl_999=checks["logits"]["kl_999"],
        top1=checks["logits"]["top1"], graph_kl=checks.get("graph", {}).get("kl_mean"),
        perplexity=checks["perplexity"]["export"], change=checks["perplexity"]["change"],
        ties=checks["greedy"]["ties"], verdict=certificate["verdict"],
    )  # fmt: skip


def targets(rows: list[Row]) -> list[Target]:
    """Every export passes and carries the checkpoint's integers."""
    passed = sum(row["verdict"] == "pass" for row in rows) / len(rows)
    exact = sum(row["weights"] == 0 for row in rows) / len(rows)
    return [
        Target("share of exports that pass", passed, 1.0),
        Target("share of exports whose weights are all equal", exact, 1.0),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+", help="quantized checkpoint folders")
    add_common_arguments(parser, JSON_NAME, has_threads=False)
    return parser.parse_args()


if __name__ == "__main__":
    main()
