"""From the start of a process to its first token, and what is resident then: bcq-run, llama.cpp."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).parent / "peers" / "llama_first_token.py"


@dataclass(frozen=True)
class FirstToken:
    """What a process took to its first token.

    Attributes:
        seconds: from the start of the process; of a Python process from the end of its imports.
        import_s: before them; None in a program without imports.
        resident_mb: VmRSS then, of a Python process less what it had after its imports.
        token: that came.
    """

    seconds: float
    import_s: float | None
    resident_mb: float
    token: int


def our_first_token(
    tool: Path, package: Path, ids: str, threads: int, num_context: int, check: str
) -> FirstToken:
    """bcq-run after `ids` (1,2,3); it is stopped at its first token, and then ended.

    Raises:
        SystemExit: it printed no token.
    """
    command = [str(tool), str(package), "--ids", ids, "-n", "16", "--check", check]
    command += ["--threads", str(threads), "--context", str(num_context)]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as child:
        assert child.stdout is not None
        said = child.stdout.read(64)
        seconds = time.monotonic() - start
        child.send_signal(signal.SIGSTOP)
        resident = _resident_mb(child.pid)
        child.kill()
    first = re.match(rb"\d+", said)
    if first is None:
        raise SystemExit(f"{' '.join(command)}: printed no token")
    return FirstToken(seconds, None, resident, int(first[0]))


def their_first_token(
    python: Path, gguf: Path, ids: str, threads: int, num_context: int
) -> FirstToken:
    """llama.cpp after `ids`, in peers/llama_first_token.py.

    Raises:
        SystemExit: it printed no token.
    """
    command = [str(python), str(CHILD), str(gguf), ids, str(threads), str(num_context)]
    start = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        ready = child.stdout.readline().split()
        said = child.stdout.readline().split()
        stop = time.monotonic()
        if len(ready) != 3 or len(said) != 2:
            raise SystemExit(f"{' '.join(command)}: printed no token")
        resident = _resident_mb(child.pid) - int(ready[2]) * 1024 / 1e6
        child.communicate()
    imported = float(ready[1])
    return FirstToken(stop - imported, imported - start, resident, int(said[1]))


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
