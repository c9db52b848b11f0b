"""Every kernel tier against the scalar one: the C++ runner, plain and under the sanitizers.

What a tier must compute is said by csrc/kernels/tier_scalar.cpp, which tests/kernels checks against
the numpy reference.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
CORE = ("core/dispatch.cpp", "core/cpu_features.cpp", "core/weight.cpp", "tests/kernels_test.cpp")
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-fno-math-errno"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Compiler flags, every how many-th linear shape, and the checks that must at least have run.
BUILDS: dict[str, tuple[list[str], int, int]] = {
    "plain": (["-O2"], 1, 10_000_000),
    "sanitized": (["-O1", "-g1", *SANITIZERS], 11, 1_000_000),
}
OK, UNKNOWN_TIER, NOT_HERE = 0, 4, 5


def _tiers() -> dict[str, list[str]]:
    """Tiers of this machine's architecture and their flags, as csrc/tiers.txt lists them."""
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    lines = [line.split() for line in (CSRC / "tiers.txt").read_text().splitlines()]
    rows = [line for line in lines if line and not line[0].startswith("#")]
    return {row[1]: row[2:] for row in rows if row[0] in ("any", here)}


TIERS = _tiers()


def _run(
    command: list[str], *, tier: str | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "BCQ_FORCE_TIER"}
    if tier is not None:
        environment["BCQ_FORCE_TIER"] = tier
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )


def _must(command: list[str]) -> str:
    done = _run(command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def _build(folder: Path, flags: list[str]) -> Path:
    """Compile with g++ but link with gcc: an undefined libstdc++ symbol fails the link."""
    for compiler in ("g++", "gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    sources: dict[Path, list[str]] = {CSRC / name: [] for name in CORE} | {
        CSRC / f"kernels/tier_{tier}.cpp": extra for tier, extra in TIERS.items()
    }
    objects = []
    for source, extra in sources.items():
        objects.append(str(folder / f"{source.stem}.o"))
        include = [f"-I{CSRC}", f"-I{CSRC / 'include'}"]
        _must(["g++", *FLAGS, *flags, *extra, *include, "-c", str(source), "-o", objects[-1]])
    program = folder / "kernels_test"
    _must(["gcc", *flags, *objects, "-lm", "-o", str(program)])
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner of the plain build."""
    return _build(tmp_path_factory.mktemp("plain"), BUILDS["plain"][0])


@pytest.fixture(scope="module")
def sanitized_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("sanitized"), BUILDS["sanitized"][0])


def _check_tier(program: Path, tier: str, build: str) -> None:
    status, chosen = _run([str(program), "--get", tier]).stdout.split()
    if int(status) == NOT_HERE:
        pytest.skip(f"this CPU lacks {tier}")
    assert (int(status), chosen) == (OK, tier)
    _, every, least = BUILDS[build]
    last = _must([str(program), tier, str(every)]).splitlines()[-1]
    ran = re.fullmatch(r"ran tier (\w+), (\d+) checks, 0 failures", last)
    assert ran is not None, last
    assert ran[1] == tier  # the table's own name: the tier asked for is the one that ran
    assert int(ran[2]) >= least


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_computes_what_the_scalar_tier_does(program: Path, tier: str) -> None:
    _check_tier(program, tier, "plain")


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_is_clean_under_the_sanitizers(sanitized_program: Path, tier: str) -> None:
    _check_tier(sanitized_program, tier, "sanitized")


FOREIGN = "neon" if "avx2" in TIERS else "avx2"
# BCQ_FORCE_TIER (None: not set), the name in the call, the status, the tier ("" = this CPU's best).
CHOICES = [
    (None, None, OK, ""),
    ("", None, OK, ""),
    ("scalar", None, OK, "scalar"),
    ("avx3", None, UNKNOWN_TIER, "-"),
    ("Scalar", None, UNKNOWN_TIER, "-"),
    (FOREIGN, None, NOT_HERE, "-"),
    (None, "scalar", OK, "scalar"),
    (None, "", UNKNOWN_TIER, "-"),
    (None, "avx", UNKNOWN_TIER, "-"),
    (None, "wasm_simd128", NOT_HERE, "-"),
    ("avx3", "scalar", OK, "scalar"),  # a name in the call comes before the environment
]


@pytest.mark.parametrize(("forced", "name", "status", "tier"), CHOICES)
def test_the_tier_asked_for_or_an_error(
    program: Path, forced: str | None, name: str | None, status: int, tier: str
) -> None:
    named = [] if name is None else [name]
    found = _run([str(program), "--get", *named], tier=forced).stdout.split()
    assert found == [str(status), tier or _best(program)]


def _best(program: Path) -> str:
    """The first tier of the build that this CPU has, each asked for by name."""
    for tier in _must([str(program), "--names"]).split():
        if _run([str(program), "--get", tier]).stdout.startswith("0 "):
            return tier
    raise AssertionError("not even the scalar tier runs")


def test_the_build_has_the_listed_tiers(program: Path) -> None:
    names = _must([str(program), "--names"]).split()
    assert sorted(names) == sorted(TIERS)
    assert names[-1] == "scalar"


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_exports_its_table_alone(program: Path, tier: str) -> None:
    """Code built for one instruction set must not be the linker's copy for another."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    defined = ["nm", "--extern-only", "--defined-only", "--format=posix"]
    symbols = _must([*defined, str(program.with_name(f"tier_{tier}.o"))]).splitlines()
    assert [symbol.split()[0].lstrip("_") for symbol in symbols] == [f"bcq_kernels_{tier}"]
