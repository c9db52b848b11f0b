"""The fuzzers of mobile/fuzz: the kept corpus runs and reaches deep, then new inputs for a while.

BCQ_FUZZ_SECONDS is how long each one looks for new inputs; 30 where it is not set.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.fuzzers import CORPUS, NAMES, build_fuzzer

# What the corpus must still reach (it was 20 opened, 12 ran, 1 loaded; 30 accepted, 9 rendered):
# a change that stops every input at the first check would make a fuzzer that finds nothing.
REACHED = {
    "package": {"opened": 16, "ran": 10, "loaded": 1},
    "tokenizer": {"accepted": 24, "rendered": 6},
}
# Half of two busy cores had 510 a second (package) and 5050 (tokenizer).
LEAST_PER_SECOND = {"package": 10, "tokenizer": 100}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> the program."""
    folder = tmp_path_factory.mktemp("fuzzers")
    return lambda name: build_fuzzer(name, folder)


def fuzz(program: Path, *words: str | Path, seconds: int = 0) -> str:
    """What a fuzzer says; it must have found nothing."""
    # What an input may take is one allocation's limit. Resident memory is mostly the sanitizer's
    # own: 2.9 GB were seen with 28 MB allocated, where the kernel backs it with huge pages.
    limits = ["-timeout=60", "-rss_limit_mb=6000", "-malloc_limit_mb=256"]
    command = [str(program), *limits, f"-artifact_prefix={program.parent}/", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=300 + 2 * seconds,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_corpus_runs_and_reaches_deep(fuzzer: Callable[[str], Path], name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    said = fuzz(fuzzer(name), "-runs=0", CORPUS / name)
    # libFuzzer also runs the empty input.
    done = re.search(r"Done (\d+) runs", said)
    assert files and done is not None and int(done[1]) == len(files) + 1
    told = {what: int(num) for num, what in re.findall(r"(\d+) (\w+)", said.splitlines()[-1])}
    for what, least in REACHED[name].items():
        assert told[what] >= least, told


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_new_inputs_find_nothing(fuzzer: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    seconds = int(os.environ.get("BCQ_FUZZ_SECONDS", "30"))
    words = [f"-max_total_time={seconds}", "-seed=1", "-print_final_stats=1"]
    said = fuzz(fuzzer(name), *words, tmp_path, CORPUS / name, seconds=seconds)
    done = re.search(r"stat::number_of_executed_units: (\d+)", said)
    assert done is not None and int(done[1]) >= LEAST_PER_SECOND[name] * seconds
