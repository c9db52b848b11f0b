"""What a package's perplexity costs with float16 and int8 caches instead of float32 ones.

    python -m benchmarks.bench_kv_cache /tmp/m/smol-g64

The mobile runtime scores the builtin evaluation text in windows of 1024 tokens that do not overlap,
once for each type of cache, with float32 activations (so that nothing else is rounded) and with the
package's own. `error_percent` is the standard error of the increase, from the differences of
whole windows. Figures depend on no clock: a busy machine gives the same.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

if not __package__:  # run as a file: `python benchmarks/bench_kv_cache.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant import __version__
from bcquant.calib.dataset import builtin_text
from bcquant.cli import main as bcquant_main
from bcquant.kernels.runtime_native import Package, RuntimeOptions, open_package
from bcquant.kernels.runtime_values import KV_TYPES
from benchmarks._rows import Row, Target, results_path, write_results

JSON_NAME = "kv_cache.json"
WINDOW, MAX_TOKENS, QUICK_TOKENS = 1024, 8192, 2048
REFERENCE = "f32"
NEEDED_PERCENT = 0.1  # an int8 cache may cost this much


def main() -> None:
    args = _arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        path = args.model
        if path.suffix != ".bcq":
            path = Path(folder) / "model.bcq"
            if bcquant_main(["export", "mobile", str(args.model), "-o", str(path)]) != 0:
                raise SystemExit(f"{args.model}: the export failed")
        with open_package(path) as package:
            ids = package.tokenizer().encode(builtin_text("evaluation"), False, False)
            ids = ids[: QUICK_TOKENS if args.quick else MAX_TOKENS]
            for activations in ("exact", None):
                rows += _rows_of(package, ids, activations, args.threads)
    file = results_path(args, JSON_NAME)
    notes = [" ".join((__doc__ or "").split()), f"model: {args.model.name}"]
    print(write_results(file, "Caches", rows, targets(rows), notes) + f"written: {file}")


def _rows_of(
    package: Package, ids: Sequence[int], activations: str | None, threads: int
) -> list[Row]:
    """One row a type of cache."""
    found: dict[str, npt.NDArray[np.float64]] = {}
    rows: list[Row] = []
    for kv_type in KV_TYPES:
        options = RuntimeOptions(threads, activations, kv_type)
        found[kv_type] = window_nlls(package, ids, options)
        rows.append(
            {
                "impl": "bcquant", "version": __version__,
                "activations": activations or package.info.activations, "cache": kv_type,
                "kv_bytes": package.plan(WINDOW, options).kv_bytes,
                **figures(found[kv_type], found[REFERENCE], len(ids)),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def window_nlls(
    package: Package, ids: Sequence[int], options: RuntimeOptions
) -> npt.NDArray[np.float64]:
    """Summed -log p (nats) of every window."""
    with package.model(options) as model, model.session(WINDOW) as session:
        nlls = []
        for first in range(0, len(ids) - 1, WINDOW):
            session.truncate(0)
            nlls.append(session.score(ids[first : first + WINDOW]))
    return np.array(nlls)


def figures(
    nlls_W: npt.NDArray[np.float64], reference_W: npt.NDArray[np.float64], num_ids: int
) -> dict[str, float]:
    """Perplexity, its increase over the reference's and that figure's standard error, percent."""
    scored = num_ids - len(nlls_W)
    gaps_W = nlls_W - reference_W
    spread = float(gaps_W.std(ddof=1)) if len(gaps_W) > 1 else math.nan
    return {
        "tokens": scored,
        "perplexity": round(math.exp(float(nlls_W.sum()) / scored), 4),
        "increase_percent": round(100 * math.expm1(float(gaps_W.sum()) / scored), 4),
        "error_percent": round(100 * spread * math.sqrt(len(gaps_W)) / scored, 4),
    }


def targets(rows: Sequence[Row]) -> list[Target]:
    """An int8 cache costs at most NEEDED_PERCENT; as a share of it, so that at least 1 holds."""
    found = [
        NEEDED_PERCENT / max(float(row["increase_percent"]), 1e-9)
        for row in rows
        if row["cache"] == "int8"
    ]
    name = f"{NEEDED_PERCENT} % over the increase of an int8 cache"
    return [Target(name, min(found, default=None), 1.0)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="quantized checkpoint folder or a .bcq of one")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help=f"rows (results/{JSON_NAME}); FILE.md beside it"
    )
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK_TOKENS} tokens")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    return parser.parse_args()


if __name__ == "__main__":
    main()
