"""A server of killable runs, and finished runs that several tests compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_outputs import TINY, Outcome, Reference, contents
from tiny_checkpoint import make_checkpoint

import bcquant

SERVER = Path(__file__).with_name("crash_server.py")


Runner = Callable[..., Outcome]


@pytest.fixture(scope="session")
def bcquant_run() -> Iterator[Runner]:
    """`bcquant_run(*argv, at=..., nth=..., signal=...)`: see crash_server.py."""
    root = str(Path(bcquant.__file__).parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(*argv: object, **job: Any) -> Outcome:
            assert server.stdin is not None and server.stdout is not None
            if argv:
                job["argv"] = [str(a) for a in argv]
            server.stdin.write(json.dumps(job).encode() + b"\n")
            server.stdin.flush()
            return Outcome(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()
        assert server.wait(10) == 0


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, bcquant_run: Runner) -> Reference:
    folder = tmp_path_factory.mktemp("resume")
    model = make_checkpoint("llama3", folder / "m", dtype="F16", **TINY)
    text = folder / "text.txt"
    from pydoc_data.topics import topics

    text.write_text("\n".join(topics[key] for key in sorted(topics))[:6000], encoding="utf-8")
    argv = [
        "gptq", str(model), "--group-size", "16", "--calib-tokens", "96", "--seq-len", "12",
        "--calib", str(text), "--lm-head", "--json",
    ]  # fmt: skip
    outcome = bcquant_run(*argv, "-o", folder / "out")
    assert (outcome.status, outcome.err) == (0, "")
    return Reference(argv, contents(folder / "out"), outcome.trace)
