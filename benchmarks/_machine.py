"""The machine: what it is, what it can do at best, and how busy others keep it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bcquant.io.demo_model import cache_folder

SOURCE = Path(__file__).parent / "stream_read.cpp"
CACHE = cache_folder() / "bench"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
STATE_FIELD = 3  # of /proc/PID/stat, counted from 1; the command before it may hold spaces


def machine() -> str:
    """Number of cores and their name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models) or os.cpu_count()} x {models[0] if models else platform.processor()}"


class MachinePeak:
    """The helper program of stream_read.cpp, built and running until `close`.

    Raises:
        SystemExit: there is no C++ compiler, or it refuses the file.
    """

    def __init__(self) -> None:
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            raise SystemExit("no C++ compiler for stream_read.cpp; install g++, or set CXX")
        self._folder = tempfile.TemporaryDirectory(prefix="bcquant-bench-")
        program = Path(self._folder.name) / "stream_read"
        flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
        built = subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", str(program)], capture_output=True, text=True
        )
        if built.returncode:
            raise SystemExit(f"{compiler} could not build {SOURCE}:\n{built.stderr}")
        self._child = subprocess.Popen(
            [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._child.pid

    def read_gbps(self, threads: int) -> float:
        """GB/s of one pass over 256 MB."""
        return self._ask(f"read {threads}")

    def dot_gops(self, threads: int) -> float:
        """GOP/s of int8 dot products in registers; 0 where this CPU has no such instruction."""
        return self._ask(f"dot {threads}")

    def _ask(self, request: str) -> float:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(request + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"stream_read ended at {request!r}")
        return float(line)

    def close(self) -> None:
        """End the program and remove it."""
        self._child.communicate()
        self._folder.cleanup()


@dataclass(frozen=True)
class _Reading:
    wall_s: float
    busy_s: float
    own_s: float


class Load:
    """Cores that others keep busy while the block runs, in `cores` afterwards.

    Others: everything but this process and the `pids` of its peers. Ticks are 10 ms, so blocks
    shorter than a second say little. None where there is no /proc.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self.cores: float | None = None

    def __enter__(self) -> Load:
        self._start = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        start, stop = self._start, self._read()
        if start is None or stop is None or stop.wall_s <= start.wall_s:
            return
        others = (stop.busy_s - start.busy_s) - (stop.own_s - start.own_s)
        self.cores = round(max(0.0, others / (stop.wall_s - start.wall_s)), 2)

    def _read(self) -> _Reading | None:
        try:
            ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
            children = sum(_cpu_s(pid) for pid in self._pids)
        except OSError:
            return None
        busy = sum(ticks) - ticks[3] - ticks[4]  # all but idle and waiting for a disk
        return _Reading(time.monotonic(), busy * TICK_S, time.process_time() + children)


def _cpu_s(pid: int) -> float:
    """User and system time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[14 - STATE_FIELD]) + int(fields[15 - STATE_FIELD])) * TICK_S
