"""The shared library as apps get it, the CMake build that makes it, and bcq-run over the C API."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factory import make_tiny
from mobile_build import CSRC, MOBILE, RELEASE, library, objects, run, tiers

from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions

ALL = tuple(path.stem for path in sorted((MOBILE / "runtime").glob("*.cpp")))


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def stripped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linked as CMakeLists.txt does it, and stripped."""
    need("strip")
    script = f"-Wl,--version-script={MOBILE / 'exports.map'}"
    found = objects([MOBILE / f"runtime/{part}.cpp" for part in ALL], RELEASE)
    made = tmp_path_factory.mktemp("library") / "libbcq_runtime.so"
    link = ["-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,-z,max-page-size=16384", script]
    run(["gcc", "-shared", *found, *link, "-pthread", "-lm", "-o", made])
    run(["strip", made])
    return made


def test_the_library_is_below_a_megabyte(stripped: Path) -> None:
    # What a phone's app grows by (EDGE.md, section 4); x86-64 with three tiers had 0.71 MB.
    assert stripped.stat().st_size < 1_000_000


def test_the_library_needs_no_cpp_runtime(stripped: Path) -> None:
    need("readelf")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run(["readelf", "-d", stripped]))
    assert {name.split(".")[0] for name in needed} <= {"libm", "libc", "ld-linux-x86-64"}


def test_the_library_shows_its_api_and_nothing_else(stripped: Path) -> None:
    need("nm")
    lines = run(["nm", "-D", "--defined-only", stripped]).splitlines()
    shown = {line.split()[2] for line in lines}
    assert all(name.startswith("bcq_") for name in shown)
    declared = set()
    for header in (MOBILE / "include/bcq/runtime.h", CSRC / "include/bcq/decoder.h"):
        text = re.sub(r"///.*", "", header.read_text(encoding="utf-8"))
        declared |= set(re.findall(r"\b(bcq_\w+)\(", text))
    assert declared and declared <= shown, declared - shown


def test_cmake_builds_every_source_and_tier(tmp_path: Path) -> None:
    need("cmake")
    run(["cmake", "-S", MOBILE, "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"])
    commands = json.loads((tmp_path / "compile_commands.json").read_text(encoding="utf-8"))
    by_source = {Path(entry["file"]).resolve(): entry["command"] for entry in commands}
    wanted = {*MOBILE.glob("runtime/*.cpp"), *CSRC.glob("core/*.cpp"), MOBILE / "tools/bcq_run.cpp"}
    wanted |= {CSRC / f"kernels/tier_{tier}.cpp" for tier in tiers()}
    assert set(by_source) == wanted
    for tier, flags in tiers().items():
        words = by_source[CSRC / f"kernels/tier_{tier}.cpp"].split()
        assert set(flags) <= set(words)
    for command in by_source.values():
        assert {"-fno-exceptions", "-fno-rtti", "-O3"} <= set(command.split())


@pytest.fixture(scope="module")
def bcq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, linked by gcc."""
    folder = tmp_path_factory.mktemp("bcq_run")
    runtime = library(folder, ALL)
    [made] = objects([MOBILE / "tools/bcq_run.cpp"], RELEASE)[:1]
    run(["gcc", made, runtime, f"-Wl,-rpath,{folder}", "-lm", "-o", folder / "bcq-run"])
    return folder / "bcq-run"


def test_bcq_run_says_the_ids_of_the_python_engine(
    tmp_path: Path, bcq_run: Path, export_mobile: Callable[..., Path]
) -> None:
    folder = make_tiny("llama", tmp_path / "source", "F16", eos_token_id=None)
    path = export_mobile(folder, tmp_path / "m.bcq")
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, "exact"))
    model.reserve(40)
    ids = [1, 5, 9]
    expected = [int(np.argmax(model.last_logits(ids)))]
    while len(expected) < 20:
        expected.append(int(np.argmax(model.last_logits(expected[-1:]))))
    said = run([bcq_run, path, "--ids", "1,5,9", "-n", "20", "--kv", "f32", "--threads", "2"])
    assert [int(word) for word in said.split(",")] == expected


@pytest.mark.parametrize(
    ("words", "status", "about"),
    [
        ([], 2, "which model"),
        (["{m}"], 2, "--plan is needed"),
        (["{m}", "--ids"], 2, "needs a value"),
        (["{m}", "--ids", "1", "--kv", "f64"], 2, "--kv cannot"),
        (["{m}", "--ids", "1", "--threads", "x"], 2, "--threads cannot"),
        (["{m}", "--ids", "1,,2"], 1, "numbers like"),
        (["{m}", "--ids", "96"], 1, "not of the vocabulary"),
        (["{m}", "--prompt", "hi"], 1, "no tokenizer"),
        (["{m}", "--ids", "1", "--context", "257"], 1, "256 positions"),
        (["{m}x", "--plan"], 1, "cannot be opened"),
    ],
)
def test_bcq_run_says_what_is_wrong(
    tmp_path: Path,
    bcq_run: Path,
    export_mobile: Callable[..., Path],
    words: list[str],
    status: int,
    about: str,
) -> None:
    folder = make_tiny("llama", tmp_path / "source", "F16")
    path = export_mobile(folder, tmp_path / "m.bcq")
    command = [str(bcq_run), *(word.replace("{m}", str(path)) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert about in done.stderr


def test_bcq_run_prints_the_plan(
    tmp_path: Path, bcq_run: Path, export_mobile: Callable[..., Path]
) -> None:
    folder = make_tiny("llama", tmp_path / "source", "F16")
    path = export_mobile(folder, tmp_path / "m.bcq")
    said = run([bcq_run, path, "--plan", "--context", "40"])
    numbers = [int(number) for number in re.findall(r"(\d+) bytes", said)]
    assert len(numbers) == 5 and sum(numbers[:4]) == numbers[4]
