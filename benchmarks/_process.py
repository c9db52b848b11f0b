"""A command as a process of its own: what it took."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    cpu_s: float
    peak_mb: float


def run_measured(command: list[str]) -> Cost:
    """Run a process to its end.

    Raises:
        SystemExit: it failed; the end of what it said is printed.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    workers = os.environ.get("GPTQMODEL_CPU_WORKERS", str(os.cpu_count()))
    env = {**os.environ, "PYTHONPATH": path, "GPTQMODEL_CPU_WORKERS": workers}
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        while child.poll() is None:
            peak = max(peak, _tree_high_water_mb(child.pid))
            time.sleep(POLL_S)
        seconds = time.monotonic() - start
        if child.returncode:
            said.seek(0)
            print(said.read()[-4000:], file=sys.stderr)
            raise SystemExit(f"{' '.join(command)}: ended with {child.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(round(seconds, 2), round(cpu_s, 2), round(peak, 1))


def _tree_high_water_mb(pid: int) -> float:
    """Sum of VmHWM over a process and what it started, as far as they still live."""
    total = 0.0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_tree_high_water_mb(int(c)) for c in children)
    except OSError:
        return total  # it has just ended, or there is no /proc
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return total + (int(found.group(1)) / 1024 if found else 0.0)
