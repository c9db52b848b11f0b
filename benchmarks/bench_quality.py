"""Perplexity of the solver's steps on SmolLM2-135M, one row a step; resumable.

    python benchmarks/bench_quality.py [--bits 4 3 2] [--group-size 64] [--text NAME=FILE ...]
                                       [--peer] [--quick] [--json FILE]

Every row quantizes the demo model with one more step switched on and measures strided perplexity on
text that calibration never saw. Rows that are already in the JSON file are not run again.
`--peer` adds gptqmodel (its defaults) on the same number of calibration tokens of the same text.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bcquant import __version__
from bcquant.calib.dataset import builtin_text, read_text
from bcquant.eval.perplexity import measure_perplexity
from bcquant.io.atomic import atomic_write_json
from bcquant.io.demo_model import fetch_demo_model
from bcquant.io.writer import TensorSpec, write_sharded
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import ModelSource, open_model
from bcquant.pipeline.quantize import quantize_model
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe, SolveOptions

RESULTS = Path(__file__).parent / "results"
TEXTBOOK_DAMP = 0.01
PLAIN = SolveOptions(False, act_order=False, damp_percent=TEXTBOOK_DAMP, refine_sweeps=0)
ORDER = SolveOptions(False, act_order=True, damp_percent=TEXTBOOK_DAMP, refine_sweeps=0)
FULL = SolveOptions(refine_sweeps=0)
# The single strengths of retargeting are told apart at 4 bits symmetric only: fewer runs.
SHARED_STEPS = ("rtn", "gptq", "+ order", "+ search", "+ guard", "+ D/E refined (default)")
# Step -> recipe without format and calibration. Rounding needs no calibration to speak of.
STEPS: dict[str, dict[str, Any]] = {
    "rtn": {"solver": "rtn", "guard": False, "solve": PLAIN, "retarget_strengths": ()},
    "gptq": {"guard": False, "solve": PLAIN, "retarget_strengths": ()},
    "+ order": {"guard": False, "solve": ORDER, "retarget_strengths": ()},
    "+ search": {"guard": False, "solve": FULL, "retarget_strengths": ()},
    "+ retarget 0.5": {"guard": False, "solve": FULL, "retarget_strengths": (0.5,)},
    "+ retarget 1.0": {"guard": False, "solve": FULL, "retarget_strengths": (1.0,)},
    "+ guard": {"solve": FULL},
    "+ D/E refined (default)": {},
}


def main() -> None:
    args = _arguments()
    model = fetch_demo_model()
    texts = {"pydoc": builtin_text("evaluation")}
    texts |= {n: read_text(Path(f)) for n, f in (t.split("=", 1) for t in args.text)}
    rows: list[dict[str, Any]] = (
        json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    )
    done = {(r["step"], r["bits"], r["symmetric"]) for r in rows}
    todo: list[tuple[str, int, bool]] = [("float", 16, True)]
    for bits in args.bits:
        todo += [(step, bits, True) for step in (STEPS if bits == 4 else SHARED_STEPS)]
        todo += [(step, bits, False) for step in SHARED_STEPS]
        todo += [("gptqmodel", bits, True)] if args.peer else []
    for step, bits, symmetric in todo:
        if (step, bits, symmetric) in done:
            continue
        rows.append(_row(step, bits, symmetric, model, texts, args))
        print(json.dumps(rows[-1]), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(args.json, {"versions": _versions(), "machine": _machine(), "rows": rows})
    table = markdown(rows, list(texts))
    args.json.with_suffix(".md").write_text(table)
    print(table)


def _row(
    step: str,
    bits: int,
    symmetric: bool,
    model: Path,
    texts: dict[str, str],
    args: argparse.Namespace,
) -> dict[str, Any]:
    start, cpu_start = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
        path = Path(folder) / "out"
        if step == "float":
            path = model
        elif step == "gptqmodel":
            _gptqmodel(model, path, bits, args)
        else:
            tokens = 256 if step == "rtn" else args.calib_tokens
            calib = CalibOptions(num_tokens=tokens, seq_len=min(512, tokens), seed=args.seed)
            fmt = QuantFormat(bits, args.group_size, symmetric)
            quantize_model(model, path, Recipe(format=fmt, calib=calib, **STEPS[step]))
        seconds, cpu_s = time.monotonic() - start, time.process_time() - cpu_start
        with open_model(path) as source:
            figures = {
                name: measure_perplexity(source, text, 1024, None, args.eval_tokens).perplexity
                for name, text in texts.items()
            }
    return {
        "step": step, "bits": bits, "symmetric": symmetric, "group_size": args.group_size,
        "perplexity": figures, "seconds": round(seconds, 1), "cpu_s": round(cpu_s, 1),
        "calib_tokens": args.calib_tokens,
        "eval_tokens": args.eval_tokens, "seed": args.seed,
    }  # fmt: skip


def write_float(model: Path, folder: Path) -> None:
    """The demo model as a float16 folder, which is what gptqmodel reads."""
    with open_model(model) as source:
        specs = [TensorSpec(n, "F16", source.shape(n)) for n in source.names()]
        folder.mkdir(parents=True)
        write_sharded(folder, specs, lambda n: _half(source, n), 1 << 31, {"format": "pt"})
        atomic_write_json(folder / "config.json", to_hf_config(source.config, "float16"))
    export_tokenizer(model, folder)


def _half(source: ModelSource, name: str) -> np.ndarray:
    return source.weight(name).astype(np.float16)


def _gptqmodel(model: Path, out: Path, bits: int, args: argparse.Namespace) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    plain = out.with_name("float")
    write_float(model, plain)
    ids = open_tokenizer(model).encode(builtin_text("calibration"), False, False)
    chosen = np.random.default_rng(args.seed).permutation(len(ids) // 512)[
        : args.calib_tokens // 512
    ]
    windows = [ids[c * 512 : (c + 1) * 512] for c in chosen.tolist()]
    data = [{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows]
    peer = GPTQModel.load(
        str(plain), QuantizeConfig(bits=bits, group_size=args.group_size), device="cpu"
    )
    peer.quantize(data, batch_size=1)
    peer.save(str(out))
    shutil.rmtree(plain)


def markdown(rows: list[dict[str, Any]], texts: list[str]) -> str:
    """Perplexity and its increase over float, a line a row."""
    base = next(r for r in rows if r["step"] == "float")["perplexity"]
    lines = [
        "| bits | grid | step | "
        + " | ".join(f"{t} | increase" for t in texts)
        + " | seconds | CPU s |",
        "|---|---|---|" + "---|---|" * len(texts) + "---|---|",
    ]
    order = ["float", *STEPS, "gptqmodel"]
    for row in sorted(rows, key=lambda r: (-r["bits"], not r["symmetric"], order.index(r["step"]))):
        grid = "" if row["step"] == "float" else "sym" if row["symmetric"] else "asym"
        cells = [
            f"{row['perplexity'][t]:.3f} | {100 * (row['perplexity'][t] / base[t] - 1):+.1f} %"
            for t in texts
        ]
        cells += [str(row["seconds"]), str(row.get("cpu_s", ""))]
        lines.append(f"| {row['bits']} | {grid} | {row['step']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    names = ("torch", "numpy", "transformers", "gptqmodel")
    found = {"bcquant": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    return found


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0] if models else platform.processor()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--calib-tokens", type=int, default=16384)
    parser.add_argument("--eval-tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument(
        "--quick", action="store_true", help="4 bits, few tokens: does it run at all"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "quality_smollm2.json")
    args = parser.parse_args()
    if args.quick:
        args.bits, args.calib_tokens, args.eval_tokens = [4], 512, 512
        args.json = Path(tempfile.mkdtemp()) / "quick.json"
    return args


if __name__ == "__main__":
    main()
