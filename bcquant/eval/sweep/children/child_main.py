"""Runs one child: `child_main.py NAME JOB.json`; under any Python from 3.9 on.

`run_NAME.py` beside this file exports IMPORTS, modules that are loaded before the clock starts, and
`quantize(job, say)`, which returns plain values. They go to the file job["done"] with the seconds
and the peak of resident memory. `say(done, total)` prints a line for the parent's progress bar.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

PROGRESS = "bcquant-progress"


def _say(done: int, total: int) -> None:
    print(f"\n{PROGRESS} {done} {total}", flush=True)


def _peak_mb() -> float | None:
    """High water of this process's resident memory; getrusage may report the parent's instead."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else None


def main() -> None:
    """Run the child that the arguments name."""
    name, path = sys.argv[1:3]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    file = Path(__file__).with_name(f"run_{name}.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file}: cannot be loaded")
    child = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(child)
    for module in child.IMPORTS:
        importlib.import_module(module)
    start = time.monotonic()
    found = child.quantize(job, _say)
    found["seconds"] = time.monotonic() - start
    found["peak_mb"] = _peak_mb()
    Path(job["done"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
