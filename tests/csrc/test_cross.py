"""The kernels of ARM and of WASM: right answers under emulation, and proof of which tier ran."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CROSS = Path(__file__).parents[2] / "csrc" / "tests" / "cross"
PROGRAMS = ("kernels_test", "attention_test", "pointwise_test", "simd_test")
TIER_NOT_HERE = 5  # bcq/status.h
EVERY = {"max": "20", "cortex-a76": "60", "cortex-a53": "60"}  # shapes of the runner; qemu is slow
EVERY_WASM = "8"

# What each of these CPUs has, best first: max all, A76 the dot product, A53 neither.
CPUS = {
    "max": ("neon_i8mm", "neon_dotprod", "neon"),
    "cortex-a76": ("neon_dotprod", "neon"),
    "cortex-a53": ("neon",),
}
HERE = [(cpu, tier) for cpu, tiers in CPUS.items() for tier in tiers]
NOT_HERE = [(cpu, tier) for cpu, tiers in CPUS.items() for tier in CPUS["max"] if tier not in tiers]


def _need(programs: dict[str, str]) -> None:
    for program, package in programs.items():
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is not installed: apt-get install {package}, or "
                "sh csrc/tests/cross/install_toolchains.sh"
            )


def _build(target: str, folder: Path) -> Path:
    command = ["sh", str(CROSS / "build.sh"), target, str(folder), *PROGRAMS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def _run(command: list[str], status: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == status, f"{command} ended with {done.returncode}\n{said[-4000:]}"
    return said


def _assert_ran(said: str, what: str) -> None:
    """The last line names what ran, and that it checked something and found nothing."""
    last = said.splitlines()[-1]
    counts = re.fullmatch(rf"ran {re.escape(what)}, (\d+) checks, 0 failures", last)
    assert counts and int(counts[1]) > 1000, said[-2000:]


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the test programs for AArch64."""
    _need({"aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"})
    return _build("aarch64", tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(scope="module", params=["wasm", "wasm-relaxed"])
def wasm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the test programs for WASM; without and with relaxed SIMD."""
    _need({"clang++-22": "clang-22", "wasm-ld-22": "lld-22"})
    for path, package in {
        "/usr/include/wasm32-wasi/stdlib.h": "wasi-libc",
        "/usr/include/wasm32-wasi/c++/v1/initializer_list": "libc++-22-dev-wasm32",
    }.items():
        if not Path(path).exists():
            pytest.skip(f"{path} is not there: apt-get install {package}")
    if importlib.util.find_spec("wasmtime") is None:
        pytest.skip("the Python package wasmtime is not installed: pip install wasmtime")
    return _build(request.param, tmp_path_factory.mktemp(request.param))


def _qemu(cpu: str, program: Path, *arguments: str, status: int = 0) -> str:
    return _run(["qemu-aarch64", "-cpu", cpu, str(program), *arguments], status)


def _wasm(module: Path, *arguments: str, options: tuple[str, ...] = (), status: int = 0) -> str:
    runner = [sys.executable, str(CROSS / "run_wasm.py"), *options]
    return _run([*runner, str(module), *arguments], status)


@pytest.mark.parametrize(("cpu", "tier"), HERE)
def test_an_arm_tier_computes_what_the_scalar_tier_does(aarch64: Path, cpu: str, tier: str) -> None:
    said = _qemu(cpu, aarch64 / "kernels_test", tier, EVERY[cpu])
    _assert_ran(said, f"tier {tier}")


@pytest.mark.parametrize(("cpu", "tier"), NOT_HERE)
def test_a_tier_that_the_arm_core_lacks_is_refused(aarch64: Path, cpu: str, tier: str) -> None:
    said = _qemu(cpu, aarch64 / "kernels_test", "--get", tier)
    assert said == f"{TIER_NOT_HERE} -\n"


@pytest.mark.parametrize("cpu", CPUS)
def test_the_best_tier_of_the_arm_core_is_taken(aarch64: Path, cpu: str) -> None:
    assert _qemu(cpu, aarch64 / "kernels_test", "--get") == f"0 {CPUS[cpu][0]}\n"


@pytest.mark.parametrize("program", ["attention_test", "pointwise_test"])
def test_attention_and_rows_on_an_arm_core(aarch64: Path, program: str) -> None:
    said = _qemu("cortex-a53", aarch64 / program, "neon")
    assert said.endswith(f"{program}: all passed on neon\n")


@pytest.mark.parametrize(("cpu", "isa"), [("cortex-a53", "neon"), ("cortex-a76", "neon_dotprod")])
def test_each_word_of_an_arm_vocabulary(aarch64: Path, cpu: str, isa: str) -> None:
    _assert_ran(_qemu(cpu, aarch64 / f"simd_{isa}"), f"kernels/simd_{isa}.h")


def test_each_arm_tier_is_made_of_its_own_instructions(aarch64: Path) -> None:
    found = {}
    for tier in CPUS["max"]:
        code = _run(["aarch64-linux-gnu-objdump", "-d", str(aarch64 / f"tier_{tier}.o")])
        found[tier] = {name for name in ("smmla", "sdot") if f"\t{name}\t" in code}
    assert found["neon"] == set()
    assert found["neon_dotprod"] == {"sdot"}
    assert found["neon_i8mm"] == {"smmla", "sdot"}


def test_arm_tiers_need_little_of_a_c_library(aarch64: Path) -> None:
    for tier in CPUS["max"]:
        names = _run(["aarch64-linux-gnu-nm", "-u", str(aarch64 / f"tier_{tier}.o")]).split()
        assert set(names) - {"U"} <= {"memcpy", "memset"}


def test_the_wasm_tier_computes_what_the_scalar_tier_does(wasm: Path) -> None:
    said = _wasm(wasm / "kernels_test.wasm", "wasm_simd128", EVERY_WASM)
    _assert_ran(said, "tier wasm_simd128")


@pytest.mark.parametrize("program", ["attention_test", "pointwise_test"])
def test_attention_and_rows_on_wasm(wasm: Path, program: str) -> None:
    said = _wasm(wasm / f"{program}.wasm", "wasm_simd128")
    assert said.endswith(f"{program}: all passed on wasm_simd128\n")


def test_each_word_of_the_wasm_vocabulary(wasm: Path) -> None:
    said = _wasm(wasm / "simd_wasm_simd128.wasm")
    _assert_ran(said, "kernels/simd_wasm_simd128.h")


def test_only_the_relaxed_module_needs_relaxed_simd(wasm: Path) -> None:
    is_relaxed = wasm.name.startswith("wasm-relaxed")
    said = _wasm(
        wasm / "kernels_test.wasm", "--names", options=("--no-relaxed",), status=3 * is_relaxed
    )
    assert ("refused" in said) == is_relaxed
    assert is_relaxed or said == "wasm_simd128\nscalar\n"
