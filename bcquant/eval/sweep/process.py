"""Tools in processes of their own: versions, a child's run, and its last words when it fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcquant.errors import ConfigError, ExportError
from bcquant.eval.sweep.children.child_main import PROGRESS
from bcquant.io.atomic import atomic_write_json
from bcquant.io.json_file import read_json_object

MAIN = Path(__file__).parent / "children" / "child_main.py"
_ASK_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""
_VERSIONS_LIMIT_S = 120
_END_LIMIT_S = 10


def versions(python: Path, distributions: tuple[str, ...]) -> dict[str, str | None]:
    """Version of each distribution in an interpreter, None where it is not installed.

    Raises:
        ConfigError: the interpreter cannot be run.
    """
    command = [str(python), "-c", _ASK_VERSIONS, *distributions]
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_VERSIONS_LIMIT_S
        )
        found: dict[str, str | None] = json.loads(said.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{python}: does not run as a Python interpreter ({error}); correct --python"
        ) from error
    return found


def run_child(
    python: Path,
    name: str,
    job: dict[str, Any],
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Run `children/run_NAME.py` to its end; its output goes to `folder/NAME.log`.

    Args:
        job: plain values for the child; "done" is added.
        progress: called with (done, total) as the child says them.
    Returns:
        what the child returned, with seconds and peak_mb.
    Raises:
        ExportError: it failed; the message holds its last line and names the log.
    """
    done, log = folder / f"{name}.done.json", folder / f"{name}.log"
    done.unlink(missing_ok=True)
    path = folder / f"{name}.job.json"
    atomic_write_json(path, {**job, "done": str(done)})
    command = [str(python), str(MAIN), name, str(path)]
    with (
        log.open("w", encoding="utf-8") as said,
        subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        ) as child,
    ):  # fmt: skip
        try:
            assert child.stdout is not None
            for line in child.stdout:
                words = line.split()
                if len(words) == 3 and words[0] == PROGRESS:
                    progress(int(words[1]), int(words[2]))
                else:
                    said.write(line)
        except BaseException:
            _end(child)
            raise
    if child.returncode or not done.exists():
        raise ExportError(
            f"{name} ended with status {child.returncode}: {_last_words(log)}; all it said is in "
            f"{log}"
        )
    return read_json_object(done)


def _environment() -> dict[str, str]:
    # Nothing is fetched in the middle of a measurement, and gptqmodel by default starts a worker
    # per core of the host rather than of the container.
    workers = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    return {
        "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "GPTQMODEL_CPU_WORKERS": workers, **os.environ, "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
