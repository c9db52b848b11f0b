"""Compiles the runtime for its tests: with g++, linked by gcc, so that libstdc++ would be missed.

Objects are kept under build/mobile_tests by a digest of everything that they depend on: kernel
tiers take seconds each, and every build of a test would make the same ones.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC, MOBILE = ROOT / "csrc", ROOT / "mobile"
CACHE = ROOT / "build" / "mobile_tests"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti", "-fPIC")
FLAGS += ("-fno-math-errno", "-ffunction-sections", "-fdata-sections", "-pthread")
INCLUDE = (MOBILE / "include", MOBILE, CSRC / "include", CSRC)
RELEASE = ("-O2",)
SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD_SANITIZED = ("-O1", "-g1", "-fsanitize=thread")
# What a model needs; the tokenizer, sampling and chat have tests of their own.
MODEL = ("error", "memory", "sha256", "mapped_file", "index", "package", "plan", "model", "session")
MODEL += ("cores", "overflow", "state", "measure", "signature", "ed25519", "sha512")


def run(command: Sequence[str | Path], timeout: int = 120) -> str:
    """What a command says; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def tiers() -> dict[str, tuple[str, ...]]:
    """Kernel tiers of this machine and their compiler flags, from csrc/tiers.txt."""
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    lines = (CSRC / "tiers.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.partition("#")[0].split() for line in lines]
    return {row[1]: tuple(row[2:]) for row in rows if row and row[0] in ("any", here)}


def objects(sources: Sequence[Path], flags: Sequence[str]) -> list[Path]:
    """Sources and everything below them, compiled with `flags`.

    Under a sanitizer only the scalar tier is, which the tests then choose: the others are the
    objects of the plain build, and csrc's own tests run those under sanitizers.
    """
    for compiler in ("g++", "gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    jobs = [(source, (*FLAGS, *flags)) for source in (*sources, *sorted(CSRC.glob("core/*.cpp")))]
    is_sanitized = any(flag.startswith("-fsanitize") for flag in flags)
    for tier, extra in tiers().items():
        own = flags if is_sanitized and tier == "scalar" else RELEASE
        jobs.append((CSRC / f"kernels/tier_{tier}.cpp", (*FLAGS, *own, *extra)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: _object(*job), jobs))


def program(source: Path, folder: Path, flags: Sequence[str], parts: Sequence[str] = MODEL) -> Path:
    """A C++ test program over parts of mobile/runtime."""
    made = folder / source.stem
    found = objects([source, *(MOBILE / f"runtime/{part}.cpp" for part in parts)], flags)
    run(["gcc", *flags, *found, "-pthread", "-lm", "-o", made])
    return made


def library(folder: Path, parts: Sequence[str] = MODEL, flags: Sequence[str] = RELEASE) -> Path:
    """Parts of mobile/runtime as a shared library whose every symbol can be looked up."""
    made = folder / "libbcq_runtime_test.so"
    found = objects([MOBILE / f"runtime/{part}.cpp" for part in parts], flags)
    run(["gcc", "-shared", *flags, *found, "-Wl,-z,defs", "-pthread", "-lm", "-o", made])
    return made


@cache
def _inputs() -> str:
    """Of everything that a source may include, and of the compiler."""
    digest = hashlib.sha256(run(["g++", "--version"]).encode())
    for folder in (CSRC, MOBILE):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".inc"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _object(source: Path, flags: tuple[str, ...]) -> Path:
    text = f"{source} {flags} {_inputs()}".encode() + source.read_bytes()
    kept = CACHE / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:24]}.o"
    if not kept.exists():
        include = [f"-I{folder}" for folder in INCLUDE]
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made.o"
            run(["g++", *flags, *include, "-c", source, "-o", made])
            made.replace(kept)
    return kept
