"""Attention, the cache, elementwise operations and embeddings: C++ tests on every x86 tier."""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
CORE = ("attention", "weight", "dispatch", "cpu_features", "threads", "status")
PROGRAMS = ("attention_test", "pointwise_test")
FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-rtti"]
BUILDS = {
    "plain": ["-O1"],
    "sanitizers": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}


def _tiers() -> dict[str, list[str]]:
    """Tiers of this machine's architecture and their compiler flags, from csrc/tiers.txt."""
    tiers = {}
    for line in (CSRC / "tiers.txt").read_text().splitlines():
        words = line.split("#")[0].split()
        if words and words[0] in ("any", platform.machine()):
            tiers[words[1]] = words[2:]
    return tiers


def _tier_sources(build: str) -> dict[str, tuple[str, list[str]]]:
    """Object name -> source and flags; under the sanitizers without matrix products."""
    sources = {}
    for tier, extra in _tiers().items():
        header = f"kernels/simd_{tier}.h"
        source = f"kernels/tier_{tier}.cpp"
        if build == "sanitizers" and (CSRC / header).exists():
            source = "tests/attention_tier.cpp"
            extra = [*extra, f"-DBCQ_TIER={tier}", f'-DBCQ_TIER_HEADER="{header}"']
        sources[f"tier_{tier}"] = (source, extra)
    return sources


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module", params=BUILDS)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the test programs of one build."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder: Path = tmp_path_factory.mktemp(request.param)
    flags = [*FLAGS, *BUILDS[request.param], f"-I{CSRC / 'include'}", f"-I{CSRC}"]
    sources = _tier_sources(request.param)
    sources |= {name: (f"core/{name}.cpp", []) for name in CORE}
    sources |= {name: (f"tests/{name}.cpp", []) for name in PROGRAMS}

    def compile_one(name: str) -> Path:
        source, extra = sources[name]
        made = folder / f"{name}.o"
        _run(["g++", *flags, *extra, "-c", str(CSRC / source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(2) as threads:
        objects = list(threads.map(compile_one, sources))
    shared, mains = objects[: -len(PROGRAMS)], objects[-len(PROGRAMS) :]
    for name, main in zip(PROGRAMS, mains, strict=True):
        _run(["g++", *flags, str(main), *map(str, shared), "-lm", "-o", str(folder / name)])
    return folder


@pytest.mark.parametrize("tier", _tiers())
@pytest.mark.parametrize("program", PROGRAMS)
def test_tier_passes(programs: Path, program: str, tier: str) -> None:
    said = _run([str(programs / program), tier])
    if said.endswith("tier not here\n"):
        pytest.skip(f"this CPU lacks what the tier {tier} needs")
    assert said == f"{program}: all passed on {tier}\n"
