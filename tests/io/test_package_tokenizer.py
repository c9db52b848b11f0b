"""Tokenizer sections: sound ones, and hostile ones."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from bcquant.errors import CheckpointError
from bcquant.io.package_tokenizer import read_tokenizer

TEXTS = [b"<s>", b"a", b"b", b"ab"]
FIELDS: dict[str, int] = {
    "kind": 2, "bits": 16, "rule": 1, "tokens": 4, "merges": 1, "unknown": -1, "num_bytes": 7,
    "begin": 0, "end": -1, "zero": 0,
}  # fmt: skip


def section(
    offsets: tuple[int, ...] = (0, 3, 4, 5, 7),
    scores: tuple[float, ...] = (),
    merges: tuple[int, ...] = (1, 2),
    types: bytes = bytes([3, 1, 1, 1]),
    texts: bytes = b"".join(TEXTS),
    **fields: int,
) -> bytes:
    """A byte-level tokenizer unless told otherwise; from the format's page alone."""
    head = struct.pack("<5IiI2iI", *{**FIELDS, **fields}.values())
    parts = [np.asarray(offsets, "<u4"), np.asarray(scores, "<f4"), np.asarray(merges, "<u4")]
    return head + b"".join(part.tobytes() for part in parts) + types + texts


SCORES = (0.0, -1.0, -2.0, -3.0)
PIECES: dict[str, Any] = {"kind": 1, "bits": 0, "rule": 0, "merges": (), "begin": -1}


def pieces(**changes: Any) -> bytes:
    """The same as SentencePiece, which has scores and no merges."""
    data = section(**{"scores": SCORES, **PIECES, **changes})
    return data if "merges" in changes else data[:16] + bytes(4) + data[20:]


def read(data: bytes) -> Any:
    return read_tokenizer(data, 4, "m.bcq")


def test_a_section_is_cut_into_its_tables() -> None:
    tables = read(section())
    assert [tables.token(i) for i in range(4)] == TEXTS and tables.num_tokens == 4
    assert tables.merges.tolist() == [[1, 2]] and tables.types.tolist() == [3, 1, 1, 1]
    assert (tables.kind, tables.pre_tokenizer, tables.scores.size) == (2, 1, 0)
    assert (tables.unknown_id, tables.begin_id, tables.end_id) == (None, 0, None)
    with pytest.raises(IndexError):
        tables.token(4)
    plain = read(pieces(unknown=0, types=bytes([7, 1, 6, 4])))
    assert plain.unknown_id == 0 and plain.scores.tolist() == list(SCORES)
    assert plain.types.tolist() == [7, 1, 6, 4] and plain.merges.shape == (0, 2)


def test_every_prefix_and_appended_bytes_are_refused() -> None:
    good = section()
    for size in range(len(good)):
        with pytest.raises(CheckpointError):
            read(good[:size])
    with pytest.raises(CheckpointError):
        read(good + b"\0")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", (0, 1, 3, 4, 2**32 - 1)),
        ("bits", (0, 17, 18, 20, 48, 64, 144, 272, 528, 1040, 2**31)),
        ("rule", (0, 6, 2**32 - 1)), ("tokens", (0, 3, 5, 2**31, 2**32 - 1)),
        ("merges", (0, 2, 2**29, 2**32 - 1)), ("unknown", (-2, 4, 2**31 - 1, -(2**31))),
        ("num_bytes", (0, 6, 8, 2**32 - 1)), ("begin", (-2, -1, 4, 2**31 - 1)),
        ("end", (-2, 0, 4)), ("zero", (1, 2**31)),
    ],
)  # fmt: skip
def test_hostile_numbers_are_refused(field: str, values: tuple[int, ...]) -> None:
    for value in values:
        with pytest.raises(CheckpointError, match=r"m\.bcq: not a sound tokenizer"):
            read(section(**{field: value}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": (0, 4, 3, 5, 7)}, "token texts are out of order"),
        ({"offsets": (1, 3, 4, 5, 7)}, "token texts are out of order"),
        ({"offsets": (0, 3, 4, 5, 6)}, "token texts are out of order"),
        ({"offsets": (0, 3, 2**32 - 1, 5, 7)}, "token texts are out of order"),
        ({"merges": (1, 4)}, "a merge is of a token that does not exist"),
        ({"merges": (2**32 - 1, 1)}, "a merge is of a token that does not exist"),
        ({"types": bytes([0, 1, 1, 1])}, "a token has a type that its kind has not"),
        ({"types": bytes([3, 1, 1, 6])}, "a token has a type that its kind has not"),
        ({"texts": b"\xff>\xffabab", "types": bytes([3, 1, 1, 1])}, "token 0 is not UTF-8"),
    ],
)
def test_hostile_tables_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(section(**change))


def test_hostile_pieces_are_refused() -> None:
    assert read(pieces()).num_tokens == 4
    for change in (
        {"merges": (1, 2)}, {"bits": 8}, {"rule": 1}, {"types": bytes([8, 1, 1, 1])},
        {"scores": (0.0, 0.0, float("nan"), 0.0)}, {"texts": b"<s>\xffbab"}, {"scores": ()},
    ):  # fmt: skip
        with pytest.raises(CheckpointError):
            read(pieces(**change))


def test_more_tokens_than_the_model_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match="it has 4 tokens and 1 merges; the model has 3"):
        read_tokenizer(section(), 3, "m.bcq")


def test_random_damage_gives_tables_or_one_error() -> None:
    rng, good, refused = random.Random(0), section(), 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            tables = read(bytes(data))
        except CheckpointError:
            refused += 1
            continue
        assert sum(len(tables.token(i)) for i in range(tables.num_tokens)) == len(tables.texts)
    assert refused > 2000


def test_the_bits_of_each_kind() -> None:
    # Byte-level BPE may be normalized; BPE over characters may also have what Metaspace does.
    assert read(section(bits=16 | 64)).bits == 80
    characters = {"kind": 3, "rule": 0, "begin": -1}
    for bits in (0, 1, 4, 64, 129, 257, 385, 512, 1 | 4 | 64 | 128 | 256 | 512):
        assert read(section(bits=bits, **characters)).bits == bits
    for bits in (2, 8, 128, 256, 384, 1 << 10):
        with pytest.raises(CheckpointError):
            read(section(bits=bits, **characters))
    for bits in (8, 64, 1 | 128, 1 | 256, 512):
        with pytest.raises(CheckpointError):
            read(pieces(bits=bits))
