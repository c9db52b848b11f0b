"""llama.cpp through llama_child.py: the same prompt and tokens, timed inside that process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("llama_child.py")
DEFAULT_PYTHON = Path(sys.executable)


class LlamaCpp:
    """A child process; `close` ends it.

    Args:
        python: an interpreter that has llama-cpp-python.
    Raises:
        SystemExit: there is no such interpreter, or it has no llama_cpp.
    """

    def __init__(self, python: Path) -> None:
        if not python.exists():
            raise SystemExit(
                f"{python}: no such interpreter; --llama-python names one with llama-cpp-python, "
                "--no-llama goes without"
            )
        self._child = subprocess.Popen(
            [str(python), str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._child.pid
        self.version = "llama.cpp"

    def quantize_q4_0(self, source: Path, target: Path) -> None:
        """llama.cpp's own Q4_0 file of a GGUF, from whatever types it has."""
        partial = target.with_suffix(".partial")
        self._ask(do="quantize", source=str(source), target=str(partial))
        partial.replace(target)

    def load(self, path: Path, num_tokens: int) -> None:
        """Load a model, with room for `num_tokens`."""
        found = self._ask(do="load", path=str(path), num_tokens=num_tokens)
        parts = found["system"].replace(" = 1", "").split(": ", 1)[-1].split(" | ")
        features = [p.strip() for p in parts if p.strip() in ("AVX512_VNNI", "OPENMP", "REPACK")]
        self.version = f"llama-cpp-python {found['version']}, {' '.join(features)}"

    def round(self, prompt: list[int], following: list[int], threads: int) -> tuple[float, float]:
        """Seconds of the prompt as one batch, and of the tokens after it one by one."""
        found = self._ask(do="round", prompt=prompt, next=following, threads=threads)
        return found["prefill_s"], found["decode_s"]

    def choices(self, ids: list[int], threads: int) -> list[int]:
        """The likeliest next token after each of `ids`."""
        found: list[int] = self._ask(do="choices", ids=ids, threads=threads)["ids"]
        return found

    def close(self) -> None:
        """End the process."""
        self._child.communicate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says it
        line = self._child.stdout.readline()
        answer: dict[str, Any] = (
            json.loads(line) if line else {"error": "the process ended; its message is above"}
        )
        if "error" in answer:
            raise SystemExit(f"llama.cpp, {request['do']}: {answer['error']}")
        return answer
