"""The whole runtime compiled by other compilers: for the fuzzers, for AArch64, for Android.

Objects are kept beside those of mobile_build.py, by a digest of everything that they depend on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from mobile_build import CACHE, CSRC, INCLUDE, MOBILE, run

FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti", "-fPIC")
FLAGS += ("-fno-math-errno", "-ffunction-sections", "-fdata-sections", "-pthread")
APT = {
    "clang++-22": "clang-22",
    "ld.lld-22": "lld-22",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "g++-aarch64-linux-gnu",
    "qemu-aarch64": "qemu-user",
}


@dataclass(frozen=True)
class Target:
    """A compiler and what it is told.

    Attributes:
        machine: as csrc/tiers.txt calls it.
        tier_flags: in place of `flags` for every tier but scalar; None = the same ones.
    """

    compiler: str
    machine: str
    flags: tuple[str, ...]
    tier_flags: tuple[str, ...] | None = None


AARCH64 = Target("aarch64-linux-gnu-g++", "aarch64", ("-O2", "-fno-schedule-insns"))


def need(*programs: str) -> None:
    """Skip where one of them is not installed, and say which package has it."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is not installed: apt-get install {APT.get(program, program)}, or "
                "sh csrc/tests/cross/install_toolchains.sh"
            )


def runtime_objects(target: Target) -> list[Path]:
    """mobile/runtime, csrc/core and every kernel tier of the target's machine."""
    sources = [*MOBILE.glob("runtime/*.cpp"), *CSRC.glob("core/*.cpp")]
    jobs = [(source, target.flags) for source in sorted(sources)]
    for line in (CSRC / "tiers.txt").read_text(encoding="utf-8").splitlines():
        machine, *row = line.partition("#")[0].split() or [""]
        if machine in ("any", target.machine):
            is_own = row[0] == "scalar" or target.tier_flags is None
            flags = target.flags if is_own else target.tier_flags or ()
            jobs.append((CSRC / f"kernels/tier_{row[0]}.cpp", (*flags, *row[1:])))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compiled(target, job[0], job[1]), jobs))


def compiled(target: Target, source: Path, flags: Sequence[str] = ()) -> Path:
    """One object; `flags` in place of the target's where there are any."""
    words = (*FLAGS, *(flags or target.flags))
    text = f"{target.compiler} {source} {words} {_inputs(target.compiler)}".encode()
    digest = hashlib.sha256(text + source.read_bytes()).hexdigest()[:24]
    kept = CACHE / f"{target.machine}-{source.stem}-{digest}.o"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        include = [f"-I{folder}" for folder in INCLUDE]
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / "made.o"
            run([target.compiler, *words, *include, "-c", source, "-o", made], timeout=300)
            made.replace(kept)
    return kept


@cache
def _inputs(compiler: str) -> str:
    """Of everything that a source may include, and of the compiler."""
    digest = hashlib.sha256(run([compiler, "--version"]).encode())
    for folder in (CSRC, MOBILE):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".inc"):
                digest.update(path.read_bytes())
    return digest.hexdigest()
