"""Write mobile/runtime/unicode_tables.inc and nfc_tables.inc: what every code point is to a
pre-tokenizer, and to the normalization form C.

The truth is not a Unicode file but what the `tokenizers` library does, whose regular expressions
(Oniguruma), Digits step and normalizers (Rust) know three versions of Unicode: every code point is
asked. tests/mobile/test_tokenizer.py and test_nfc.py run this again and compare.

    .venv/bin/python mobile/tools/make_unicode_tables.py
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

OTHER, LETTER, NUMBER, SPACE, LATER_NUMBER = range(5)
_RUNTIME = Path(__file__).parents[1] / "runtime"
_HANGUL = range(0xAC00, 0xD7A4)  # composed by arithmetic
_BLOCK = 4096
_HEAD = """\
// Made by mobile/tools/make_unicode_tables.py from what tokenizers {version} does; do not edit.
// A run of code points of one class: first | class << 24. It ends where the next one begins.
"""
_NFC_HEAD = """\
// Made by mobile/tools/make_unicode_tables.py from what tokenizers {version} does; do not edit.
"""
_CLASSES = "Runs of code points of one combining class: first | class << 24."
_PAIRS = """\
What a code point decomposes to: code << 42 | first << 21 | second, by code. No second: 0. Only a
// first decomposes further. Hangul is not here."""
_JOINING = "What is no mark and second in a pair that is put together again."
_COMPOSED = "The places in kPairs of what is put together again, by first << 21 | second."


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
    return _HEAD.format(version=tokenizers.__version__) + _rows(f"0x{run:08x}," for run in runs)


def _rows(values: Iterable[str], num: int = 8) -> str:
    every = list(values)
    return "".join(" ".join(every[at : at + num]) + "\n" for at in range(0, len(every), num))


def _combining_classes() -> dict[int, int]:
    """The class of each mark. Python knows marks that the library, which is older, has as letters;
    a class is what orders two marks, so each mark is put before and behind one of every class."""
    from tokenizers import normalizers

    order = normalizers.NFD().normalize_str
    low, high = "\u0334", "\u0345"  # of the classes 1 and 240, the last one
    found: dict[int, int] = {}
    for block in _code_points():
        for code in block:
            c = chr(code)
            is_mark = order(high + c)[-1] == high or order(c + low)[0] == low
            if is_mark and order(c) == c:
                found[code] = unicodedata.combining(c)
    samples = {number: chr(code) for code, number in reversed(found.items())}
    for code, number in found.items():
        for other, sample in samples.items():
            c = chr(code)
            before, behind = c + sample, sample + c
            wanted = (before if number <= other else behind, behind if other <= number else before)
            if number == 0 or (order(before), order(behind)) != wanted:
                raise SystemExit(f"U+{code:04X} is not of class {number} to tokenizers")
    return found


def _decompositions() -> dict[int, tuple[int, int]]:
    """First and second of every code point that decomposes; no second is 0."""
    from tokenizers import normalizers

    decompose = normalizers.NFD().normalize_str
    found: dict[int, tuple[int, int]] = {}
    for block in _code_points():
        for code in block:
            if code not in _HANGUL and decompose(chr(code)) != chr(code):
                first, *second = (int(p, 16) for p in unicodedata.decomposition(chr(code)).split())
                found[code] = (first, second[0] if second else 0)

    def full(code: int) -> str:
        first, second = found.get(code, (code, 0))
        return (full(first) if first != code else chr(code)) + (chr(second) if second else "")

    wrong = [code for code in found if full(code) != decompose(chr(code))]
    if wrong or {second for _, second in found.values()} & found.keys():
        raise SystemExit(f"tokenizers decomposes {wrong} otherwise, or a second decomposes")
    return found


def nfc_table() -> str:
    """The text of nfc_tables.inc."""
    import tokenizers

    compose = tokenizers.normalizers.NFC().normalize_str
    classes, pairs = _combining_classes(), _decompositions()
    values = [classes.get(code, 0) for code in range(0x110000)]
    runs = [
        code | number << 24
        for code, number in enumerate(values)
        if code == 0 or number != values[code - 1]
    ]
    ordered = sorted(pairs.items())
    composed = sorted(
        (first << 21 | second, place)
        for place, (code, (first, second)) in enumerate(ordered)
        if second and compose(chr(first) + chr(second)) == chr(code)
    )
    joining = sorted({pair & 0x1FFFFF for pair, _ in composed} - classes.keys())
    inert = {*range(0xC0), *range(0x3400, 0xA000)}
    below = {*range(0x300)}  # nothing there is changed if nothing else is in the text
    if inert & (classes.keys() | pairs.keys() | set(joining)) or below & (
        classes.keys() | set(joining)
    ):
        raise SystemExit("nfc.cpp takes code points for inert that are not")
    packed = (code << 42 | first << 21 | second for code, (first, second) in ordered)
    parts = (
        ("uint32_t kClassRuns", _CLASSES, _rows(f"0x{run:08x}," for run in runs)),
        ("uint64_t kPairs", _PAIRS, _rows((f"0x{pair:016x}," for pair in packed), 5)),
        ("uint32_t kJoining", _JOINING, _rows(f"0x{code:06x}," for code in joining)),
        ("uint16_t kComposed", _COMPOSED, _rows((f"{place}," for _, place in composed), 16)),
    )
    body = "".join(f"// {what}\nconstexpr {name}[] = {{\n{rows}}};\n" for name, what, rows in parts)
    return _NFC_HEAD.format(version=tokenizers.__version__) + body


if __name__ == "__main__":
    (_RUNTIME / "unicode_tables.inc").write_text(table(), encoding="ascii")
    (_RUNTIME / "nfc_tables.inc").write_text(nfc_table(), encoding="ascii")
