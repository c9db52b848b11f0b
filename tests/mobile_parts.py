"""Files of mobile/runtime built by themselves: a shared library for ctypes, or a test program."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ("-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC")
FLAGS += ("-fno-exceptions", "-fno-rtti")  # as the phone runtime is built
INCLUDES = tuple(f"-I{ROOT / folder}" for folder in ("mobile/include", "csrc/include", "mobile"))
SANITIZERS = (
    "-fsanitize=address,undefined", "-fsanitize=float-cast-overflow", "-fno-sanitize-recover=all",
)  # fmt: skip


def build_library(folder: Path, parts: Sequence[str]) -> ctypes.CDLL:
    """A shared library of mobile/runtime/PART.cpp files; bcq_error_text returns bytes.

    It is linked by gcc with nothing left undefined, so a use of libstdc++ fails.
    """
    sources = [f"mobile/runtime/{part}.cpp" for part in parts]
    path = _build(folder, sources, ["-shared", "-Wl,-z,defs"], ())
    library = ctypes.CDLL(str(path))
    library.bcq_error_text.restype = ctypes.c_char_p
    return library


def build_program(
    folder: Path,
    name: str,
    parts: Sequence[str],
    flags: Sequence[str] = (),
    prefix: str = "",
) -> Path:
    """mobile/tests/NAME.cpp with mobile/runtime/PART.cpp files.

    Args:
        flags: for compiling and linking.
        prefix: of the compilers' names, for another machine.
    """
    sources = [f"mobile/runtime/{part}.cpp" for part in parts] + [f"mobile/tests/{name}.cpp"]
    return _build(folder, sources, [], flags, prefix)


def run(command: Sequence[str | Path]) -> str:
    """Standard output of a command that must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _build(
    folder: Path,
    sources: Sequence[str],
    link: Sequence[str],
    flags: Sequence[str],
    prefix: str = "",
) -> Path:
    for compiler in ("g++", "gcc"):
        if shutil.which(prefix + compiler) is None:
            pytest.skip(f"{prefix}{compiler} is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in sources:
        objects.append(folder / (Path(source).stem + ".o"))
        compile_one = [f"{prefix}g++", *FLAGS, *INCLUDES, *flags, "-c", ROOT / source]
        run([*compile_one, "-o", objects[-1]])
    out = folder / "built"
    run([f"{prefix}gcc", *flags, *link, *objects, "-o", out])
    return out
