"""Tokens a second of a 512-token prompt and of 128 tokens after it: bcquant and llama.cpp (Q4_0).

Both run the same codes and scales: bcquant reads the Linears of llama.cpp's own Q4_0 file as they
are (g32); rows of another group size keep the codes and thin out the scales, which changes the
weights and not the work. Embedding and head are 8 bits in bcquant; the notes say what they are in
the GGUF, and bytes_per_token what each side reads. The cache is float16 on both sides, the prompt
is one batch, the logits of the last token are computed at every step, and nothing is sampled.
Rounds alternate between the implementations; llama.cpp times itself in a process of its own.

smollm2: SmolLM2-135M-Instruct. baichuan7b: random weights, four layers of Baichuan-7B's shape and
its vocabulary of 64000; the head is a third of the bytes there (a tenth in the real 32 layers).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

if not __package__:  # run as a file: `python benchmarks/bench_decode.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant.calib.dataset import builtin_text
from bcquant.io.demo_model import fetch_demo_model
from bcquant.runtime.tokenizer import open_tokenizer
from benchmarks._machine import CACHE, Load
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
from benchmarks.peers.q4_gguf import HEAD_TYPES, describe, write_random

JSON_NAME, HOG_JSON_NAME = "decode.json", "decode_hog.json"
SHAPES = {  # hidden, intermediate, vocabulary, parameters of the blocks
    "smollm2": (576, 1536, 49152, 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)),
    "baichuan7b": (4096, 11008, 64000, 4 * (4 * 4096 * 4096 + 3 * 4096 * 11008)),
}
GROUPS = {"smollm2": (32, 64), "baichuan7b": (32, 128)}
NEEDED = {
    "smollm2": {"decode": 1.3, "prefill": 1.3},
    "baichuan7b": {"decode": 1.15, "prefill": 1.5},
}
PROMPT_TOKENS, NUM_CONTEXT = 512, 1024
AGREEMENT_TOKENS = 96  # of the evaluation text
EXAMPLES = """examples:
  python -m benchmarks.bench_decode                        both models, 1 and 2 threads
  python -m benchmarks.bench_decode --quick
  python -m benchmarks.bench_decode --models baichuan7b --llama-head Q8_0 --repeat 9
  python -m benchmarks.bench_decode --models smollm2 --hog
"""


@dataclass
class Entry:
    """One implementation at one group size and number of threads."""

    impl: str
    version: str
    group_size: int
    threads: int
    bytes_per_token: int
    run: object  # (prompt, following) -> seconds of each
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def round(self, prompt: list[int], following: list[int], is_counted: bool) -> None:
        """One round; its seconds are kept if it counts."""
        time.sleep(SETTLE_S)
        found = self.run(prompt, following)  # type: ignore[operator]
        if is_counted:
            self.prefill.append(found[0])
            self.decode.append(found[1])


class Hog:
    """A process that spins on the last core while it is let go."""

    def __init__(self) -> None:
        self._child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        self.pid = self._child.pid
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.pid, {max(os.sched_getaffinity(0))})
        self.hold()

    def let_go(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def hold(self) -> None:
        self._child.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def main() -> None:
    args = _arguments()
    llama = None if args.no_llama else LlamaCpp(args.llama_python)
    rows: list[Row] = []
    notes = [" ".join(__doc__.split())]
    try:
        for model in args.models:
            path = _gguf(model, llama, args)
            notes.append(f"{model}: {describe(path)[1]}")
            if llama is not None:
                llama.load(path, NUM_CONTEXT)
            entries = [e for t in args.threads for e in _entries(model, path, llama, t, args)]
            if model == "smollm2" and llama is not None:
                notes.append(_agreement(path, entries, llama))
            rows += _hog(model, entries, llama, args) if args.hog else []
            rows += [] if args.hog else _plain(model, entries, llama, args)
    finally:
        if llama is not None:
            llama.close()
    found = [] if args.hog else targets(rows, args.models, args.threads)
    path = results_path(args, HOG_JSON_NAME if args.hog else JSON_NAME)
    print(write_results(path, "Prompt and decoding speed", rows, found, notes) + f"written: {path}")


def _gguf(model: str, llama: LlamaCpp | None, args: argparse.Namespace) -> Path:
    """The model's Q4_0 file, made once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if model == "smollm2":
        path = CACHE / "SmolLM2-135M-Instruct.Q4_0.gguf"
        if not path.exists():
            if llama is None:
                raise SystemExit(f"{path} is not there yet; run once without --no-llama")
            llama.quantize_q4_0(fetch_demo_model(), path)
        return path
    hidden, inner, vocab, _ = SHAPES[model]
    path = CACHE / f"{model}-4layers.{args.llama_head}-head.gguf"
    if not path.exists():
        write_random(
            path, hidden=hidden, inner=inner, heads=32, layers=4, vocab=vocab,
            head_type=args.llama_head,
        )  # fmt: skip
    return path


def _entries(
    model: str, path: Path, llama: LlamaCpp | None, threads: int, args: argparse.Namespace
) -> list[Entry]:
    from benchmarks.peers.bcq_decoder import BcqDecoder

    entries = []
    for group_size in GROUPS[model][: 1 if args.quick or args.hog else None]:
        ours = BcqDecoder(path, group_size, threads, NUM_CONTEXT)
        entries.append(
            Entry("bcquant", ours.version, group_size, threads, ours.bytes_per_token, ours.round)
        )
    if llama is not None:

        def run(prompt: list[int], following: list[int]) -> tuple[float, float]:
            return llama.round(prompt, following, threads)

        num_bytes = describe(path)[0]
        entries.append(Entry("llama.cpp", llama.version, 32, threads, num_bytes, run))
    return entries


def _agreement(path: Path, entries: list[Entry], llama: LlamaCpp) -> str:
    """That both sides run the same model: their likeliest next tokens along a text."""
    text = builtin_text("evaluation")[: 16 * AGREEMENT_TOKENS]
    ids = open_tokenizer(path).encode(text, False, False)[:AGREEMENT_TOKENS]
    ours = next(e for e in entries if e.impl == "bcquant" and e.group_size == 32)
    decoder = ours.run.__self__  # type: ignore[attr-defined]
    pairs = zip(decoder.choices(ids), llama.choices(ids, ours.threads), strict=True)
    alike = sum(a == b for a, b in pairs)
    return (
        f"smollm2: bcquant g32 and llama.cpp choose the same next token {alike} of {len(ids)} times"
    )


def _tokens(model: str, args: argparse.Namespace) -> tuple[list[int], list[int]]:
    rng = np.random.default_rng(0)
    ids = rng.integers(10, SHAPES[model][2], PROMPT_TOKENS + args.decode_tokens).tolist()
    return ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:]


def _plain(
    model: str, entries: list[Entry], llama: LlamaCpp | None, args: argparse.Namespace
) -> list[Row]:
    """Rounds of all implementations; the first, which touches everything first, does not count."""
    prompt, following = _tokens(model, args)
    rows = []
    for threads in args.threads:
        chosen = [e for e in entries if e.threads == threads]
        with Load([] if llama is None else [llama.pid]) as load:
            for count in range(args.repeat + 1):
                for entry in chosen if count % 2 else reversed(chosen):
                    entry.round(prompt, following, count > 0)
        other = next((e for e in chosen if e.impl == "llama.cpp"), None)
        for entry in chosen:
            rows += _rows(model, entry, other, len(prompt), len(following), load)
    return rows


def _rows(
    model: str, entry: Entry, other: Entry | None, num_prompt: int, num_decode: int, load: Load
) -> list[Row]:
    hidden, inner, vocab, block_params = SHAPES[model]
    head = hidden * vocab
    rows = []
    for op, samples, num in (
        ("prefill", entry.prefill, num_prompt),
        ("decode", entry.decode, num_decode),
    ):
        step_s = median(samples) / (1 if op == "prefill" else num)
        tokens = num if op == "prefill" else 1
        ratio = {}
        if other is not None and entry is not other:
            theirs = other.prefill if op == "prefill" else other.decode
            ratio = {"llama.cpp": median(theirs) / median(samples)}
        row = make_row(
            entry.impl, entry.version, op, shape=(hidden, inner, tokens),
            group_size=entry.group_size, threads=entry.threads, median_us=step_s * 1e6,
            gbps=entry.bytes_per_token / step_s / 1e9,
            gops=2 * (block_params * tokens + head) / step_s / 1e9, ratio_to=ratio, model=model,
            tokens_per_s=tokens / step_s, bytes_per_token=entry.bytes_per_token,
            samples=len(samples), best_tokens_per_s=num / min(samples), others_cores=load.cores,
        )  # fmt: skip
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _hog(
    model: str, entries: list[Entry], llama: LlamaCpp | None, args: argparse.Namespace
) -> list[Row]:
    """Decoding with every thread while another process spins on one core, against one thread."""
    prompt, following = _tokens(model, args)
    hog = Hog()
    alone = {t: [e for e in entries if e.threads == t] for t in (1, 2)}
    hogged = [_copy(e) for e in alone[2]]
    try:
        with Load([hog.pid] + ([] if llama is None else [llama.pid])) as load:
            for count in range(args.repeat + 1):
                for entry in alone[1] + alone[2]:
                    entry.round(prompt[:16], following, count > 0)
                hog.let_go()
                for entry in hogged:
                    entry.round(prompt[:16], following, count > 0)
                hog.hold()
    finally:
        hog.close()
    rows = []
    kinds = ((alone[1], "decode"), (alone[2], "decode"), (hogged, "decode, one core taken"))
    for chosen, op in kinds:
        for single, entry in zip(alone[1], chosen, strict=True):
            step_s = median(entry.decode) / len(following)
            ratio = median(single.decode) / median(entry.decode)
            row = make_row(
                entry.impl, entry.version, op, shape=(*SHAPES[model][:2], 1),
                group_size=entry.group_size, threads=entry.threads, median_us=step_s * 1e6,
                gbps=entry.bytes_per_token / step_s / 1e9,
                ratio_to={} if entry is single else {"its own 1 thread alone": ratio},
                model=model, tokens_per_s=1 / step_s, samples=len(entry.decode),
                others_cores=load.cores,
            )  # fmt: skip
            rows.append(row)
            print(_line(row), flush=True)
    return rows


def _copy(entry: Entry) -> Entry:
    return Entry(
        entry.impl, entry.version, entry.group_size, entry.threads, entry.bytes_per_token, entry.run
    )


def targets(rows: list[Row], models: list[str], threads: list[int]) -> list[Target]:
    """The promises, on the rows that read the same codes and scales."""
    found = []
    for model in models:
        for op, needed in NEEDED[model].items():
            for count in threads:
                key = (model, op, count, "bcquant", 32)
                name = f"{model} {op}, {count} threads, against llama.cpp"
                row = next((r for r in rows if _key(r) == key), None)
                ratio = row["ratio_to"].get("llama.cpp") if row else None
                found.append(Target(name, ratio, needed, row and row["others_cores"]))
    return found


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "op", "threads", "impl", "group_size"))


def _line(row: Row) -> str:
    ratios = "  ".join(f"{v:.2f}x {k}" for k, v in row["ratio_to"].items())
    return (
        f"{row['model']:<10} {row['op']:<8} {row['threads']}T {row['impl']:<9} "
        f"g{row['group_size']:<3} {row['tokens_per_s']:>8.1f} tokens/s {row['gbps']:>6.1f} GB/s  "
        f"others {row['others_cores']}  {ratios}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), metavar="MODEL")
    parser.add_argument("--decode-tokens", type=int, metavar="N", help="128")
    parser.add_argument(
        "--llama-python", type=Path, default=DEFAULT_PYTHON, metavar="PATH",
        help="interpreter with llama-cpp-python (.venv-llama/bin/python)",
    )  # fmt: skip
    parser.add_argument("--no-llama", action="store_true", help="bcquant alone")
    parser.add_argument(
        "--llama-head", choices=tuple(HEAD_TYPES), default="Q6_K",
        help="type of baichuan7b's head in the GGUF (Q6_K, llama.cpp's choice; Q8_0 has our size)",
    )  # fmt: skip
    parser.add_argument(
        "--hog", action="store_true", help="decode at 2 threads while a process takes one core"
    )
    add_common_arguments(parser, JSON_NAME)
    args = parser.parse_args()
    args.models = args.models or (["smollm2"] if args.quick else list(SHAPES))
    args.decode_tokens = args.decode_tokens or (32 if args.quick else 128)
    args.repeat = args.repeat or (2 if args.quick else 7)
    if args.hog:
        args.threads = [1, 2]
    return args


if __name__ == "__main__":
    main()
