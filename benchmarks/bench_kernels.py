"""4-bit linear layers: our kernels, ONNX Runtime's MatMulNBits and torch's, interleaved in one run.

All compute y = x W^T from the same codes and scales; each result is compared with float32 before
anything is timed. Up to 16 tokens a run goes through enough copies of the weight to fill 150 MB, so
that they come from memory; 576x1536 is cache resident for everybody. gbps counts the bytes that an
implementation stores for its weight (codes and scales: ONNX Runtime keeps float32 scales, torch's
bf16 linear has no codes) plus x and y. The ratios to `stream` and `dot_peak` are to a streaming
read of 256 MB and to int8 dot products in registers, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a file: `python benchmarks/bench_kernels.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import Load, MachinePeak
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    results_path,
    write_results,
)
from benchmarks._timing import Contestant, interleave

JSON_NAME = "kernels.json"
SHAPES = ("4096x4096", "4096x11008", "11008x4096", "576x1536")  # K x N
ROTATED_BYTES = 150_000_000  # of weights, several times the last cache
MAX_ROTATED_TOKENS = 16  # beyond, arithmetic and not memory is the limit
MAX_ERROR = 0.05  # relative; int8 activations give 0.006, a wrong layout gives 1
IMPLS = ("bcquant", "ort_level4", "ort_level0", "torch_int4", "torch_bf16")
EXAMPLES = """examples:
  python -m benchmarks.bench_kernels                      everything, about ten minutes
  python -m benchmarks.bench_kernels --quick
  python -m benchmarks.bench_kernels --shapes 4096x11008 --tokens 1 --groups 32 --repeat 15
  python -m benchmarks.bench_kernels --impls bcquant ort_level4 --json /tmp/rows.json
"""


def main() -> None:
    args = _arguments()
    peak = MachinePeak()
    rows: list[Row] = []
    machine_samples: dict[tuple[str, int], list[float]] = {}
    try:
        for shape in args.shapes:
            k, n = map(int, shape.split("x"))
            for group_size in args.groups:
                if k % group_size:  # the peers have no kernel for a shorter last group
                    print(f"{shape} g{group_size}: left out, {k} is no multiple of {group_size}")
                    continue
                for found in _shape(k, n, group_size, args, peak, machine_samples):
                    rows.append(found)
                    print(_line(found), flush=True)
    finally:
        peak.close()
    rows = _machine_rows(machine_samples) + rows
    text = write_results(
        results_path(args, JSON_NAME), "Kernels", rows, targets(rows), (" ".join(__doc__.split()),)
    )
    print(text[: text.index("| impl")] + f"written: {results_path(args, JSON_NAME)} and .md")


def _shape(
    k: int,
    n: int,
    group_size: int,
    args: argparse.Namespace,
    peak: MachinePeak,
    machine_samples: dict[tuple[str, int], list[float]],
) -> Iterator[Row]:
    """Rows of one shape and group size, for all threads and tokens."""
    rng = np.random.default_rng(0)
    codes_NK = rng.integers(0, 16, (n, k), dtype=np.uint8)
    scales_NG = (0.005 + 0.01 * rng.random((n, k // group_size))).astype(np.float16)
    for threads in args.threads:
        for is_rotated in (True, False):
            tokens = [m for m in args.tokens if (m <= MAX_ROTATED_TOKENS) == is_rotated]
            peers = _peers(codes_NK, scales_NG, threads, is_rotated, args) if tokens else {}
            for m in tokens:
                x_MK = rng.standard_normal((m, k)).astype(np.float32)
                errors = _check(peers, codes_NK, scales_NG, x_MK)
                contestants = [Contestant(i, p.run, p.copies) for i, p in peers.items()]
                machine = _machine_contestants(peak, threads, m)
                with Load([peak.pid]) as load:
                    interleave(contestants + machine, args.repeat)
                for entry in machine:
                    machine_samples.setdefault((entry.name, threads), []).extend(entry.samples)
                yield from _rows(
                    (k, n, m), group_size, threads, peers, contestants, machine, errors, load
                )


class _Peer:
    """An implementation with its copies, whatever it is."""

    def __init__(self, made: Any, copies: int, version: str) -> None:
        self.bind, self.run, self.result = made.bind, made.run, made.result
        self.weight_bytes: int = made.weight_bytes
        self.copies, self.version = copies, version


def _peers(
    codes_NK: np.ndarray,
    scales_NG: np.ndarray,
    threads: int,
    is_rotated: bool,
    args: argparse.Namespace,
) -> dict[str, _Peer]:
    """The implementations that were asked for; each is imported only then."""

    def copies(num_bytes: float) -> int:
        # A weight that the caches keep whatever is done stays one copy.
        is_small = codes_NK.size // 2 < 1 << 20
        return 1 if not is_rotated or is_small else int(-(-ROTATED_BYTES // num_bytes))

    packed, as_bf16 = copies(codes_NK.size / 2), copies(codes_NK.size * 2)
    made: dict[str, Callable[[], _Peer]] = {
        "bcquant": lambda: _bcquant(codes_NK, scales_NG, packed, threads),
        "ort_level4": lambda: _ort(codes_NK, scales_NG, packed, threads, 4),
        "ort_level0": lambda: _ort(codes_NK, scales_NG, packed, threads, 0),
        "torch_int4": lambda: _torch("TorchInt4", codes_NK, scales_NG, packed, threads),
        "torch_bf16": lambda: _torch("TorchBf16", codes_NK, scales_NG, as_bf16, threads),
    }
    return {impl: made[impl]() for impl in args.impls}


def _bcquant(codes_NK: np.ndarray, scales_NG: np.ndarray, copies: int, threads: int) -> _Peer:
    from benchmarks.peers.bcq_linear import BcqLinear, impl_version

    return _Peer(BcqLinear(codes_NK, scales_NG, copies, threads), copies, impl_version())


def _ort(
    codes_NK: np.ndarray, scales_NG: np.ndarray, copies: int, threads: int, level: int
) -> _Peer:
    from benchmarks.peers.ort_matmul import VERSION, OrtMatMul

    return _Peer(OrtMatMul(codes_NK, scales_NG, copies, threads, level), copies, VERSION)


def _torch(
    kind: str, codes_NK: np.ndarray, scales_NG: np.ndarray, copies: int, threads: int
) -> _Peer:
    import torch

    from benchmarks.peers import torch_linear

    torch.set_num_threads(threads)
    made = getattr(torch_linear, kind)(codes_NK, scales_NG, copies)
    return _Peer(made, copies, torch_linear.VERSION)


def _check(
    peers: dict[str, _Peer], codes_NK: np.ndarray, scales_NG: np.ndarray, x_MK: np.ndarray
) -> dict[str, float]:
    """Relative error of every implementation on up to 64 rows of W; wrong results stop the run."""
    rows = slice(0, 64)
    group_size = codes_NK.shape[1] // scales_NG.shape[1]
    weight_NK = codes_NK[rows].astype(np.float32) - 8.0
    weight_NK *= np.repeat(scales_NG[rows].astype(np.float32), group_size, axis=1)
    wanted = x_MK @ weight_NK.T
    errors = {}
    for impl, peer in peers.items():
        peer.bind(x_MK)
        found = peer.result()[:, rows]
        errors[impl] = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
        if not errors[impl] < MAX_ERROR:
            raise SystemExit(f"{impl} computes something else: relative error {errors[impl]:.3f}")
    return errors


def _machine_contestants(peak: MachinePeak, threads: int, m: int) -> list[Contestant]:
    """The limits, as seconds for a GB and for a Gop."""
    if m <= MAX_ROTATED_TOKENS:
        return [Contestant("stream", lambda: 1.0 / peak.read_gbps(threads))]
    if peak.dot_gops(threads) == 0.0:
        return []
    return [Contestant("dot_peak", lambda: 1.0 / peak.dot_gops(threads))]


def _rows(
    shape: tuple[int, int, int],
    group_size: int,
    threads: int,
    peers: dict[str, _Peer],
    contestants: list[Contestant],
    machine: list[Contestant],
    errors: dict[str, float],
    load: Load,
) -> Iterator[Row]:
    k, n, m = shape
    limits = {entry.name: 1e6 / entry.median_us for entry in machine}
    for entry in contestants:
        peer = peers[entry.name]
        gbps = (peer.weight_bytes + 4 * m * (k + n)) / entry.median_us / 1e3
        gops = 2 * m * k * n / entry.median_us / 1e3
        ratios = {
            other.name: other.median_us / entry.median_us
            for other in contestants
            if entry.name == "bcquant" and other is not entry
        }
        reached = {"stream": gbps, "dot_peak": gops}
        ratios |= {name: reached[name] / limit for name, limit in limits.items()}
        yield make_row(
            entry.name, peer.version, "linear_w4", shape=shape, group_size=group_size,
            threads=threads, median_us=entry.median_us, gbps=gbps, gops=gops, ratio_to=ratios,
            best_us=min(entry.samples) * 1e6, samples=len(entry.samples), copies=peer.copies,
            rel_error=errors[entry.name], others_cores=load.cores,
        )  # fmt: skip


def _machine_rows(samples: dict[tuple[str, int], list[float]]) -> list[Row]:
    rows = []
    for (name, threads), found in samples.items():
        figure = 1.0 / float(np.median(found))
        is_read = name == "stream"
        row = make_row(
            name, "stream_read.cpp", "read_256MB" if is_read else "dot_int8", threads=threads,
            median_us=(1 << 28) / figure / 1e3 if is_read else 1e6 / figure,  # a Gop
            gbps=figure if is_read else None, gops=None if is_read else figure,
            samples=len(found),
        )  # fmt: skip
        rows.append(row)
    return rows


def targets(rows: list[Row]) -> list[Target]:
    """The promises about GEMV and GEMM, the worst row of each group of rows."""
    ours = [r for r in rows if r["impl"] == "bcquant"]
    found = []
    for threads, share in ((1, 0.8), (2, 0.9)):
        gemv = [r for r in ours if (r["K"], r["N"], r["M"]) == (4096, 11008, 1)]
        gemv = [r for r in gemv if r["threads"] == threads]
        name = f"GEMV 4096x11008, {threads} threads"
        found.append(_worst(f"{name}, share of the streaming read", gemv, "stream", share))
        found.append(_worst(f"{name}, against ort_level4", gemv, "ort_level4", 1.3))
        for m in (128, 512):
            gemm = [r for r in ours if (r["M"], r["threads"]) == (m, threads)]
            name = f"GEMM M={m}, {threads} threads, against ort_level4"
            found.append(_worst(name, gemm, "ort_level4", 1.4))
    return found


def _worst(name: str, rows: list[Row], other: str, needed: float) -> Target:
    rows = [r for r in rows if other in r["ratio_to"]]
    if not rows:
        return Target(name, None, needed)
    worst = min(rows, key=lambda r: r["ratio_to"][other])
    where = f"worst of {len(rows)}: {worst['K']}x{worst['N']} g{worst['group_size']}"
    return Target(f"{name} ({where})", worst["ratio_to"][other], needed, worst["others_cores"])


def _line(row: Row) -> str:
    ratios = "  ".join(f"{v:.2f}x {k}" for k, v in row["ratio_to"].items())
    return (
        f"{row['K']:>5}x{row['N']:<5} g{row['group_size']:<3} M={row['M']:<3} {row['threads']}T "
        f"{row['impl']:<10} {row['median_us']:>9.1f} us {row['gbps']:>6.1f} GB/s "
        f"{row['gops']:>7.1f} GOP/s  others {row['others_cores']}  {ratios}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", metavar="KxN", help=" ".join(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", metavar="M", help="1 4 16 128 512")
    parser.add_argument("--groups", type=int, nargs="+", metavar="G", help="32 128")
    parser.add_argument("--impls", nargs="+", choices=IMPLS, default=list(IMPLS))
    add_common_arguments(parser, JSON_NAME)
    args = parser.parse_args()
    args.shapes = args.shapes or list(("4096x4096", "576x1536") if args.quick else SHAPES)
    args.tokens = args.tokens or ([1, 128] if args.quick else [1, 4, 16, 128, 512])
    args.groups = args.groups or ([32] if args.quick else [32, 128])
    args.repeat = args.repeat or (2 if args.quick else 9)
    return args


if __name__ == "__main__":
    main()
