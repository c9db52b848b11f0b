"""The runtime's normalization form C against the one of the `tokenizers` library."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from mobile_parts import ROOT, SANITIZERS, build_program
from tokenizers import normalizers

FORM_C = normalizers.NFC()
CODES = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
MARKS = [c for c in CODES if unicodedata.combining(chr(c))]
DECOMPOSED = [c for c in CODES if unicodedata.decomposition(chr(c))[:1] not in ("", "<")]
PARTS_OF_HANGUL = [*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A7, 0x11C3)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = ("nfc", "unicode", "memory", "error")
    return build_program(tmp_path_factory.mktemp("nfc"), "nfc_filter", parts, SANITIZERS)


def normalized(program: Path, texts: Iterable[str]) -> list[str]:
    encoded = [text.encode() for text in texts]
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    done = subprocess.run([program], input=data, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found, at = [], 0
    while at < len(done.stdout):
        (size,) = struct.unpack_from("<I", done.stdout, at)
        found.append(done.stdout[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return found


def check(program: Path, texts: Sequence[str]) -> None:
    got, wanted = normalized(program, texts), [FORM_C.normalize_str(text) for text in texts]
    wrong = [row for row in zip(texts, got, wanted, strict=True) if row[1] != row[2]]
    assert not wrong, (len(wrong), [list(map(ascii, row)) for row in wrong[:3]])


def test_every_code_point_behind_a_letter_and_before_a_mark(program: Path) -> None:
    # A text each would be slow to write; a line end is joined by nothing.
    blocks = [CODES[at : at + 4096] for at in range(0, len(CODES), 4096)]
    for form in ("{}", "e{}\u0301", "\uac00{}", "{}\u0323\u0345"):
        check(program, ["\n".join(form.format(chr(c)) for c in block) for block in blocks])


def test_every_pair_that_unicode_puts_together(program: Path) -> None:
    pairs = [unicodedata.normalize("NFD", chr(c)) for c in DECOMPOSED]
    check(program, [*pairs, *(pair[0] + "\u0334" + pair[1:] for pair in pairs)])
    check(program, [*("x" + pair[::-1] for pair in pairs), *(pair + "\u0300" for pair in pairs)])


def test_random_sequences(program: Path) -> None:
    r = random.Random(8)
    letters = [ord(c) for c in "aeiouAEIOUyqdD\u03b1\u03c9\u0438\u05d9\u0915\u09c7\u3046\u4f60 "]
    pools = (MARKS, letters, DECOMPOSED, PARTS_OF_HANGUL, CODES, range(0xAC00, 0xAC40))
    texts = []
    for i in range(100_000):
        pool = [r.choice(r.choice(pools)) for _ in range(r.randrange(9))]
        pool += r.choices(MARKS, k=r.randrange(5)) if i % 2 else []
        texts.append("".join(map(chr, pool)))
    texts += [r.randbytes(12).decode("utf-8", "replace") for _ in range(10_000)]
    check(program, texts)
    once = normalized(program, texts)
    assert normalized(program, once) == once  # a normal form stays as it is


def test_marks_and_parts_without_end(program: Path) -> None:
    # Anything quadratic in these would take minutes.
    falling = sorted(MARKS, key=lambda c: -unicodedata.combining(chr(c)))
    marks = "".join(chr(c) for c in falling for _ in range(100))
    long = ("a" + marks, marks, "\u1161" * 50_000, "\uac00" * 50_000, "\u09be" * 50_000)
    check(program, ["", "a", "\u0301", *long, "\U0001d160" * 10_000, "\u4f60" * 30_000 + "\u0301"])


def test_the_tables_are_those_of_the_tokenizers_library() -> None:
    # Asks the library about every code point again.
    tools = ROOT / "mobile" / "tools"
    sys.path.insert(0, str(tools))
    try:
        import make_unicode_tables
    finally:
        sys.path.remove(str(tools))
    file = ROOT / "mobile" / "runtime" / "nfc_tables.inc"
    made = make_unicode_tables.nfc_table().splitlines()
    assert file.read_text(encoding="ascii").splitlines()[1:] == made[1:]  # 0 names a version
