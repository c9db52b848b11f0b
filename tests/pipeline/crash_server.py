"""Runs `bcquant` command lines in forked children that stop at a chosen write. Run as a script.

torch is imported once; each JSON line on stdin is a job and gets a JSON line on stdout:

    {"argv": [...], "at": "AtomicFile.write:half", "nth": 3, "signal": 9}
        Child that sends itself `signal` at the nth event of that name ("*" = any name). Without
        "at" it runs undisturbed; "trace": true adds the names of all its events to the answer.
    {"continue": pid}     wakes a child that stopped itself (signal 19) and waits for it

Answer: {"status": exit status, or -signal, or null while it is stopped, "pid", "out", "err",
"trace"}.

An event is a moment at which a kill would leave other bytes on disk than the moment before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bcquant import cli
from bcquant.calib import layer_stream
from bcquant.calib.scratch import ScratchArray
from bcquant.io.atomic import AtomicFile
from bcquant.pipeline import output, quantize
from bcquant.pipeline.resume import Journal

# A script sees only its own folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from run_outputs import CHUNK_TOKENS


class Plan:
    """Counts events and sends the signal at the wanted one."""

    def __init__(self, at: str | None, nth: int, number: int) -> None:
        self.at, self.left, self.number = at, nth, number
        self.trace: list[str] = []

    def event(self, name: str) -> None:
        self.trace.append(name)
        if self.at in (name, "*"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)

    def about(self, name: str) -> bool:
        """Whether the next event of this name sends the signal."""
        return self.at in (name, "*") and self.left == 1


def around(plan: Plan, owner: Any, name: str, label: str) -> None:
    """Events before and after a function."""
    inner = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        plan.event(f"{label}:before")
        result = inner(*args, **kwargs)
        plan.event(f"{label}:after")
        return result

    setattr(owner, name, wrapped)


def halved(plan: Plan, owner: Any, name: str, label: str, half: Callable[..., None]) -> None:
    """An event with only the first half done, as a kill in the middle of a write would leave it."""
    inner = getattr(owner, name)

    def wrapped(*args: Any) -> Any:
        if plan.about(f"{label}:half"):
            half(*args)
        plan.event(f"{label}:half")
        return inner(*args)

    setattr(owner, name, wrapped)


def instrument(plan: Plan) -> None:
    """Put events around everything that writes, renames or removes."""
    write_file = AtomicFile.write

    def half_file(file: AtomicFile, data: Any) -> None:
        write_file(file, memoryview(data)[: len(data) // 2])
        file._file.flush()

    def half_scratch(array: ScratchArray, start: int, values: torch.Tensor) -> None:
        flat = memoryview(values.contiguous().numpy()).cast("B")
        os.pwrite(array._fd, flat[: len(flat) // 2], start * array._row_bytes)

    def half_line(journal: Journal, event: dict[str, Any]) -> None:
        line = json.dumps(event).encode()
        os.write(journal._file.fileno(), line[: len(line) // 2])

    def half_tree(folder: Path, **kwargs: Any) -> None:
        files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
        for path in files[: len(files) // 2]:
            path.unlink()

    halved(plan, AtomicFile, "write", "AtomicFile.write", half_file)
    around(plan, AtomicFile, "seal", "AtomicFile.seal")
    around(plan, AtomicFile, "publish", "AtomicFile.publish")
    halved(plan, ScratchArray, "write", "ScratchArray.write", half_scratch)
    around(plan, ScratchArray, "write", "ScratchArray.write")
    around(plan, ScratchArray, "discard", "ScratchArray.discard")
    halved(plan, Journal, "_append", "Journal._append", half_line)
    around(plan, Journal, "seal", "Journal.seal")
    around(plan, Journal, "layer_done", "Journal.layer_done")
    around(plan, Journal, "measured", "Journal.measured")
    around(plan, layer_stream.LayerStream, "run_layer", "run_layer")
    around(plan, layer_stream.LayerStream, "forget_previous", "forget_previous")
    around(plan, quantize, "write_output", "write_output")
    around(plan, output, "write_sharded", "write_sharded")
    around(plan, os, "rename", "os.rename")
    # Only removals of trees by the pipeline, the last of which drops the finished work folder.
    inner = shutil.rmtree

    def rmtree(folder: Any, *args: Any, **kwargs: Any) -> None:
        there = os.path.isdir(folder)
        if there and plan.about("rmtree:half"):
            half_tree(folder)
        if there:
            plan.event("rmtree:half")
        inner(folder, *args, **kwargs)
        if there:
            plan.event("rmtree:after")

    shutil.rmtree = rmtree  # type: ignore[assignment]


def child(job: dict[str, Any], folder: str) -> None:
    """The forked process: never returns."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    layer_stream.CHUNK_TOKENS = CHUNK_TOKENS
    os.fsync = lambda _: (
        None
    )  # what is written survives a kill without it, and a run syncs 90 times
    plan = Plan(job.get("at"), job.get("nth", 1), job.get("signal", signal.SIGKILL))
    instrument(plan)
    status = 70
    try:
        status = cli.main(job["argv"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        Path(folder, "trace").write_text(json.dumps(plan.trace))
        os._exit(status)


def answer(pid: int, folder: str) -> dict[str, Any]:
    _, raw = os.waitpid(pid, os.WUNTRACED)
    status = None if os.WIFSTOPPED(raw) else os.waitstatus_to_exitcode(raw)
    texts = {name: Path(folder, name).read_text(errors="replace") for name in ("out", "err")}
    trace = Path(folder, "trace")
    return {
        "status": status,
        "pid": pid,
        "trace": json.loads(trace.read_text()) if trace.exists() else [],
        **texts,
    }


def main() -> None:
    torch.set_num_threads(1)
    folders: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="bcquant-crash-") as root:
        for line in sys.stdin:
            job = json.loads(line)
            if "continue" in job:
                pid = job["continue"]
                os.kill(pid, signal.SIGCONT)
            else:
                folder = tempfile.mkdtemp(dir=root)
                pid = os.fork()
                if pid == 0:
                    child(job, folder)
                folders[pid] = folder
            print(json.dumps(answer(pid, folders[pid])), flush=True)


if __name__ == "__main__":
    main()
