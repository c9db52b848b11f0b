"""Builds the libFuzzer programs of mobile/fuzz.

    PYTHONPATH=tests python -m fuzz.fuzzers FOLDER

puts package_fuzz and tokenizer_fuzz there. Seeds are made by seeds.py; corpus/ holds what libFuzzer
kept of them and of what it found.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mobile_build import MOBILE, run
from mobile_cross import Target, compiled, need, runtime_objects

CORPUS = Path(__file__).parent / "corpus"
NAMES = ("package", "tokenizer")
_CHECKS = "address,undefined"
_COMMON = ("-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
FUZZER = Target(
    "clang++-22",
    "x86_64",
    ("-O2", *_COMMON, f"-fsanitize=fuzzer-no-link,{_CHECKS}"),
    tier_flags=("-O2",),  # the fuzzers choose scalar; csrc's own tests run the others so
)


def build_fuzzer(name: str, folder: Path) -> Path:
    """mobile/fuzz/NAME_fuzz.cpp over the whole runtime; skips a test without clang."""
    need(FUZZER.compiler)
    own = compiled(FUZZER, MOBILE / f"fuzz/{name}_fuzz.cpp")
    made = folder / f"{name}_fuzz"
    link = [FUZZER.compiler, f"-fsanitize=fuzzer,{_CHECKS}", "-pthread"]
    run([*link, own, *runtime_objects(FUZZER), "-o", made])
    return made


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for each in NAMES:
        print(build_fuzzer(each, target))
