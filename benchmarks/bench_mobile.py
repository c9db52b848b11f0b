"""bcq-run over a mobile package against llama.cpp over the GGUF of the same checkpoint.

Both files are exports of one 4-bit checkpoint (`bcquant export mobile`, `bcquant export gguf`) with
the same integers; the cache is float16 on both sides, nothing is sampled but the likeliest token,
and rounds alternate between the programs, the first of which does not count.

prefill, decode: seconds of a 512-token prompt and of 128 tokens after it one by one. bcquant:
`bcq-run --bench 1`, which runs once unmeasured before; llama.cpp: a process that stays, whose own
first round is not counted.

first token: from the start of a process to the likeliest token after a prompt of 32, in a context
of 512; files are in the system's cache. bcquant: bcq-run, which maps the package and checks its
whole SHA-256 table (`all`) or its structure alone (`structure`), parses ids, computes and prints.
llama.cpp: a minimal Python process over llama-cpp-python, from the moment when it has imported it
(import_s more before, which a program in C has not), so loading, a context, the prompt.

resident_mb: VmRSS then, pages of the mapped file included; of the Python process less what it had
after its imports. needs_mb: the file, and caches of the whole context, of which a short prompt
touches a part. token: what came first, on both sides the same.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

if not __package__:  # run as a file: `python benchmarks/bench_mobile.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant import __version__
from benchmarks._first_token import FirstToken, our_first_token, their_first_token
from benchmarks._machine import Load
from benchmarks._process import run_measured
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    results_path,
    write_results,
)
from benchmarks._timing import SETTLE_S
from benchmarks.peers.llama_peer import DEFAULT_PYTHON, LlamaCpp
from benchmarks.peers.q4_gguf import describe

JSON_NAME = "mobile.json"
ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench_mobile"
PREFILL, DECODE, PROMPT, CONTEXT = 512, 128, 32, 512
LEAST_MEMORY = 1 / 1.15  # of file and caches over what is resident
LEAST_SPEED, LEAST_FIRST_TOKEN = 1.3, 2.0  # times as fast as llama.cpp
EXAMPLES = """examples:
  python -m benchmarks.bench_mobile quantized
  python -m benchmarks.bench_mobile quantized --quick
"""


@dataclass
class Speed:
    """Seconds of the prompt and of the steps, a sample a round."""

    impl: str
    version: str
    run: Callable[[], tuple[float, float]]
    samples: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Start:
    """First tokens, a sample a round."""

    impl: str
    version: str
    op: str
    run: Callable[[], FirstToken]
    samples: list[FirstToken] = field(default_factory=list)


@dataclass(frozen=True)
class Files:
    """The two exports and the command."""

    tool: Path
    package: Path
    gguf: Path
    vocab_size: int
    kv_bytes: int


class OthersLoad(Load):
    """As Load, where what this process started and waited for is not others."""

    def __enter__(self) -> OthersLoad:
        super().__enter__()
        self._children_s, self._start_s = _children_s(), time.monotonic()
        return self

    def __exit__(self, *what: object) -> None:
        super().__exit__(*what)
        wall_s = time.monotonic() - self._start_s
        if self.cores is not None:
            own = (_children_s() - self._children_s) / wall_s
            self.cores = round(max(0.0, self.cores - own), 2)


def main() -> None:
    args = _arguments()
    rows: list[Row] = []
    notes = [" ".join(__doc__.split())]
    llama = LlamaCpp(args.llama_python)
    try:
        with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder:
            files = _prepare(args.model, Path(folder))
            llama.load(files.gguf, PREFILL + DECODE)
            notes.append(f"GGUF: {describe(files.gguf)[1]}")
            for threads in args.threads:
                rows += _speed_rows(files, llama, threads, args.repeat)
                rows += _start_rows(files, llama, threads, args)
    finally:
        llama.close()
    path = results_path(args, JSON_NAME)
    print(write_results(path, "bcq-run and llama.cpp", rows, targets(rows), notes), end="")
    print(f"written: {path}")


def _prepare(model: Path, folder: Path) -> Files:
    """Builds bcq-run and exports both files."""
    run_measured(["cmake", "-S", str(ROOT / "mobile"), "-B", str(BUILD)])
    run_measured(["cmake", "--build", str(BUILD), "--target", "bcq-run", "-j"])
    tool, package, gguf = BUILD / "bcq-run", folder / "model.bcq", folder / "model.gguf"
    for target, out in (("mobile", package), ("gguf", gguf)):
        command = [sys.executable, "-m", "bcquant", "export", target, str(model), "-o", str(out)]
        run_measured(command)
    plan = _said([tool, package, "--plan", "--context", str(CONTEXT)])
    caches = re.search(r"caches +(\d+) bytes", plan)
    assert caches is not None, plan
    return Files(tool, package, gguf, _vocab_size(package), int(caches[1]))


def _vocab_size(package: Path) -> int:
    from bcquant.io.package import open_package

    with open_package(package) as opened:
        return opened.model.vocab_size


def _said(command: list[str | Path]) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


# ---- prompt and steps ----


def _speed_rows(files: Files, llama: LlamaCpp, threads: int, repeat: int) -> list[Row]:
    rng = np.random.default_rng(0)
    ids = rng.integers(10, files.vocab_size, PREFILL + DECODE).tolist()

    def ours() -> tuple[float, float]:
        said = _said([files.tool, files.package, "--bench", "1", "--threads", str(threads)])
        found = re.findall(r"tokens in ([\d.]+) s", said)
        return float(found[0]), float(found[1])

    def theirs() -> tuple[float, float]:
        return llama.round(ids[:PREFILL], ids[PREFILL:], threads)

    entries = [
        Speed("bcquant", f"bcquant {__version__}", ours),
        Speed("llama.cpp", llama.version, theirs),
    ]
    with OthersLoad([llama.pid]) as load:
        for count in range(repeat + 1):
            for entry in entries if count % 2 else reversed(entries):
                time.sleep(SETTLE_S)
                found = entry.run()
                if count:
                    entry.samples.append(found)
    rows = []
    for at, (op, num) in enumerate((("prefill", PREFILL), ("decode", DECODE))):
        medians = {e.impl: median(sample[at] for sample in e.samples) for e in entries}
        for entry in entries:
            seconds = medians[entry.impl]
            ratio = {"llama.cpp": medians["llama.cpp"] / seconds}
            rows.append(
                make_row(
                    entry.impl,
                    entry.version,
                    op,
                    threads=threads,
                    shape=(None, None, num if op == "prefill" else 1),
                    median_us=seconds * 1e6 / (1 if op == "prefill" else num),
                    ratio_to=ratio if entry.impl == "bcquant" else {},
                    tokens_per_s=num / seconds,
                    samples=repeat,
                    others_cores=load.cores,
                )
            )
            print(_line(rows[-1]), flush=True)
    return rows


# ---- first token ----


def _start_rows(files: Files, llama: LlamaCpp, threads: int, args: argparse.Namespace) -> list[Row]:
    rng = np.random.default_rng(1)
    ids = ",".join(map(str, rng.integers(10, files.vocab_size, PROMPT)))
    name, version = "bcquant", f"bcquant {__version__}"
    entries = [
        Start(
            name, version, f"first token, {check}",
            partial(our_first_token, files.tool, files.package, ids, threads, CONTEXT, check),
        )
        for check in ("all", "structure")
    ]  # fmt: skip
    theirs = partial(their_first_token, args.llama_python, files.gguf, ids, threads, CONTEXT)
    entries.append(Start("llama.cpp", llama.version, "first token", theirs))
    with OthersLoad([llama.pid]) as load:
        for count in range(args.repeat + 1):
            for entry in entries if count % 2 else reversed(entries):
                time.sleep(SETTLE_S)
                found = entry.run()
                if count:
                    entry.samples.append(found)
    their_s = median(sample.seconds for sample in entries[-1].samples)
    rows = []
    for entry in entries:
        first, seconds = entry.samples[0], median(sample.seconds for sample in entry.samples)
        file = files.package if entry.impl == "bcquant" else files.gguf
        needs = (file.stat().st_size + files.kv_bytes) / 1e6
        resident = median(sample.resident_mb for sample in entry.samples)
        imports = [sample.import_s for sample in entry.samples if sample.import_s is not None]
        rows.append(
            make_row(
                entry.impl,
                entry.version,
                entry.op,
                threads=threads,
                shape=(None, None, PROMPT),
                median_us=seconds * 1e6,
                ratio_to={"llama.cpp": their_s / seconds} if entry.impl == "bcquant" else {},
                samples=args.repeat,
                others_cores=load.cores,
                resident_mb=resident,
                needs_mb=needs,
                needs_of_resident=needs / resident,
                import_s=median(imports) if imports else None,
                token=first.token,
            )
        )
        print(_line(rows[-1]), flush=True)
    return rows


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _line(row: Row) -> str:
    figure = f"{row['median_us'] / 1e3:9.3f} ms"
    if "resident_mb" in row:
        figure += f"  {row['resident_mb']:.1f} MB resident of {row['needs_mb']:.1f}"
    else:
        figure += f"  {row['tokens_per_s']:.1f} tokens/s"
    ratios = "  ".join(f"{v:.2f}x {k}" for k, v in row["ratio_to"].items())
    return (
        f"{row['op']:<22} {row['threads']}T {row['impl']:<9} {figure}  "
        f"others {row['others_cores']}  {ratios}"
    )


def targets(rows: list[Row]) -> list[Target]:
    """The project's figures against llama.cpp, and what is resident beside file and caches."""
    found = []
    for row in rows:
        if row["impl"] != "bcquant":
            continue
        name = f"{row['op']}, {row['threads']} threads"
        ratio, is_first = row["ratio_to"]["llama.cpp"], "needs_of_resident" in row
        least = LEAST_FIRST_TOKEN if is_first else LEAST_SPEED
        found.append(Target(f"{name}, against llama.cpp", ratio, least, row["others_cores"]))
        if is_first:
            share = row["needs_of_resident"]
            found.append(Target(f"{name}, file and caches of resident", share, LEAST_MEMORY))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="4-bit checkpoint folder, as bcquant writes it")
    parser.add_argument(
        "--llama-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH",
        help="interpreter with llama-cpp-python (this one)",
    )  # fmt: skip
    add_common_arguments(parser, JSON_NAME)
    args = parser.parse_args()
    args.repeat = args.repeat or (1 if args.quick else 9)
    return args


if __name__ == "__main__":
    main()
