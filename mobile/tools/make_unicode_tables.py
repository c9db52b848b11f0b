"""Write mobile/runtime/unicode_tables.inc: what every code point is to a pre-tokenizer.

The truth is not a Unicode file but what the `tokenizers` library does, whose regular expressions
(Oniguruma) and whose Digits step (Rust) know two versions of Unicode: every code point is asked.
tests/mobile/test_tokenizer.py runs this again and compares.

    .venv/bin/python mobile/tools/make_unicode_tables.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OTHER, LETTER, NUMBER, SPACE, LATER_NUMBER = range(5)
_TABLE = Path(__file__).parents[1] / "runtime" / "unicode_tables.inc"
_BLOCK = 4096
_HEAD = """\
// Made by mobile/tools/make_unicode_tables.py from what tokenizers {version} does; do not edit.
// A run of code points of one class: first | class << 24. It ends where the next one begins.
"""


def _code_points() -> Iterator[list[int]]:
    """Every code point that text can hold, in blocks."""
    for start in range(0, 0x110000, _BLOCK):
        block = [c for c in range(start, start + _BLOCK) if not 0xD800 <= c <= 0xDFFF]
        if block:
            yield block


def _matching(expression: str) -> set[int]:
    from tokenizers import Regex, pre_tokenizers

    step = pre_tokenizers.Split(Regex(expression), behavior="removed")
    found: set[int] = set()
    for block in _code_points():
        left = "".join(part for part, _ in step.pre_tokenize_str("".join(map(chr, block))))
        found.update(set(block) - set(map(ord, left)))
    return found


def _single_digits() -> set[int]:
    from tokenizers import pre_tokenizers

    step = pre_tokenizers.Digits(individual_digits=True)
    found: set[int] = set()
    for block in _code_points():
        parts = step.pre_tokenize_str("".join(f"a{chr(c)}a" for c in block))
        found.update(ord(part) for part, _ in parts if len(part) == 1 and part != "a")
    return found


def table() -> str:
    """The text of the file."""
    import tokenizers

    classes = bytearray(0x110000)
    for kind, expression in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s")):
        for code in _matching(expression):
            classes[code] = kind
    for code in _single_digits():
        if classes[code] != NUMBER:
            if classes[code] != OTHER:
                raise SystemExit(f"U+{code:04X} is a digit and of class {classes[code]}")
            classes[code] = LATER_NUMBER
    runs = [
        code | classes[code] << 24
        for code in range(len(classes))
        if code == 0 or classes[code] != classes[code - 1]
    ]
    lines = [
        " ".join(f"0x{run:08x}," for run in runs[at : at + 8]) for at in range(0, len(runs), 8)
    ]
    return _HEAD.format(version=tokenizers.__version__) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    _TABLE.write_text(table(), encoding="ascii")
