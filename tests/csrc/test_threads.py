"""The thread pool: its own C++ tests, built as phones need it and under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SOURCES = ("core/threads.cpp", "core/status.cpp", "tests/threads_test.cpp")
FLAGS = ["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
FLAGS += ["-fno-exceptions", "-fno-rtti"]  # as the phone runtime is built
BUILDS = {
    "plain": [],
    "no_rest": ["-DBCQ_NEVER_REST"],
    "mutexes": ["-DBCQ_NO_FUTEX"],
    "no_threads": ["-DBCQ_NO_THREADS"],
    "thread_sanitizer": ["-fsanitize=thread"],
    # On a busy machine workers mostly rest; with no_rest they never do, so that loops are shared.
    "thread_sanitizer_no_rest": ["-fsanitize=thread", "-DBCQ_NEVER_REST"],
    "address_sanitizer": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def _build(folder: Path, extra: list[str]) -> Path:
    """Compile with g++ but link with gcc: an undefined libstdc++ symbol fails the link."""
    for compiler in ("g++", "gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    objects = [folder / (Path(source).stem + ".o") for source in SOURCES]
    for source, made in zip(SOURCES, objects, strict=True):
        include = f"-I{CSRC / 'include'}"
        _run(["g++", *FLAGS, *extra, include, "-c", str(CSRC / source), "-o", str(made)])
    program = folder / "threads_test"
    _run(["gcc", "-pthread", *extra, *map(str, objects), "-o", str(program)])
    return program


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", BUILDS)
def test_the_pool_passes_its_own_tests(tmp_path: Path, name: str) -> None:
    program = _build(tmp_path, BUILDS[name])
    assert _run([str(program)]).endswith("threads_test: all passed\n")


def test_the_pool_needs_no_cpp_runtime(tmp_path: Path) -> None:
    program = _build(tmp_path, [])
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    assert "stdc++" not in _run(["ldd", str(program)])
