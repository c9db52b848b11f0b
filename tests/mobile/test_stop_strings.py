"""bcq_stop against bcquant/runtime/stop_strings.py."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mobile_parts import SANITIZERS, build_library, build_program, run

from bcquant.runtime.stop_strings import StopStrings

PARTS = ("stop_strings", "error", "memory", "random")
BAD_ARGUMENT = 1


class Stop:
    """bcq_stop with Python strings, in the manner of StopStrings."""

    def __init__(self, c: ctypes.CDLL, stops: list[str]) -> None:
        self.c = c
        data = [stop.encode() for stop in stops]
        strings = (ctypes.c_char_p * len(data))(*data)
        sizes = (ctypes.c_size_t * len(data))(*map(len, data))
        self.made = ctypes.c_void_p()
        self.status = c.bcq_stop_create(strings, sizes, len(data), ctypes.byref(self.made))
        self.is_found = False

    def push(self, piece: str) -> str:
        data, found = piece.encode(), ctypes.c_int32()
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        status = self.c.bcq_stop_push(
            self.made, data, ctypes.c_size_t(len(data)), ctypes.byref(text), ctypes.byref(size),
            ctypes.byref(found),
        )  # fmt: skip
        assert status == 0
        self.is_found = bool(found.value)
        return ctypes.string_at(text, size.value).decode() if size.value else ""

    def flush(self) -> str:
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        assert self.c.bcq_stop_end(self.made, ctypes.byref(text), ctypes.byref(size)) == 0
        return ctypes.string_at(text, size.value).decode() if size.value else ""

    def close(self) -> None:
        self.c.bcq_stop_destroy(self.made)


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    library = build_library(tmp_path_factory.mktemp("stop"), PARTS)
    in_use = library["_ZN3bcq13memory_in_useEv"]
    in_use.restype = ctypes.c_uint64
    yield library
    assert in_use() == 0  # every test closed what it made


def assert_same(c: ctypes.CDLL, stops: list[str], pieces: list[str]) -> None:
    """Every answer equals Python's, also behind a stop and behind the end."""
    wanted, found = StopStrings(stops), Stop(c, stops)
    assert found.status == 0
    for _ in range(2):
        for piece in pieces:
            assert found.push(piece) == wanted.push(piece), (stops, pieces)
            assert found.is_found == wanted.is_found
        assert found.flush() == wanted.flush()
    found.close()


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("ab", max_size=5), max_size=12),
)
def test_two_letters_as_python(c: ctypes.CDLL, stops: list[str], pieces: list[str]) -> None:
    assert_same(c, stops, pieces)


@given(
    st.lists(st.text("e\u00e9\u00e8\u4f60\U0001f600\U0001f601\x00", min_size=1, max_size=3)),
    st.lists(st.text("e\u00e9\u00e8\u4f60\U0001f600\U0001f601\x00", max_size=4), max_size=9),
)
def test_characters_that_share_bytes_as_python(
    c: ctypes.CDLL, stops: list[str], pieces: list[str]
) -> None:
    assert_same(c, stops, pieces)  # decoding fails where a character were cut


def test_long_random_texts_as_python(c: ctypes.CDLL) -> None:
    r = random.Random(2)
    for _ in range(300):
        letters = r.choice(["ab", "abc", "a"])
        stops = ["".join(r.choices(letters, k=r.randint(1, 30))) for _ in range(r.randint(0, 6))]
        pieces = ["".join(r.choices(letters, k=r.randint(0, 40))) for _ in range(30)]
        assert_same(c, stops, pieces)


def test_start_of_a_stop_string_is_held_back(c: ctypes.CDLL) -> None:
    stop = Stop(c, ["END"])
    assert [stop.push(piece) for piece in ("abcE", "N", "x", "E")] == ["abc", "", "ENx", ""]
    assert (stop.flush(), stop.is_found) == ("E", False)
    stop.close()


def test_no_stop_strings_show_everything(c: ctypes.CDLL) -> None:
    stop = Stop(c, [])
    assert (stop.push("all"), stop.flush()) == ("all", "")
    stop.close()


def test_time_does_not_depend_on_the_text(c: ctypes.CDLL) -> None:
    # Naive matching would need 10^11 comparisons here; this one needs about 2 * 10^6.
    stop = Stop(c, ["a" * 200_000 + "b"])
    start = time.process_time()
    assert stop.push("a" * 1_000_000) == "a" * 800_000
    assert stop.push("b") == ""
    assert stop.is_found
    assert time.process_time() - start < 5
    stop.close()


def test_an_empty_stop_string_is_refused(c: ctypes.CDLL) -> None:
    stop = Stop(c, ["a", ""])
    assert (stop.status, stop.made.value) == (BAD_ARGUMENT, None)
    assert c.bcq_error_text() == b"a stop string is empty; give at least one character"


def test_null_is_refused(c: ctypes.CDLL) -> None:
    made, number = ctypes.c_void_p(), ctypes.c_int32()
    text, size, none = ctypes.c_void_p(), ctypes.c_size_t(), None
    text_at, size_at = ctypes.byref(text), ctypes.byref(size)
    strings, sizes = (ctypes.c_char_p * 1)(None), (ctypes.c_size_t * 1)(3)
    assert c.bcq_stop_create(strings, sizes, 1, None) == BAD_ARGUMENT
    for arguments in ((strings, sizes, 1), (None, sizes, 1), (strings, None, 1), (none, none, -1)):
        assert c.bcq_stop_create(*arguments, ctypes.byref(made)) == BAD_ARGUMENT
    stop = Stop(c, ["a"])
    good = [stop.made, b"x", size, text_at, size_at, ctypes.byref(number)]
    assert c.bcq_stop_push(*good) == 0
    for at in (0, 3, 4, 5):
        assert c.bcq_stop_push(*good[:at], None, *good[at + 1 :]) == BAD_ARGUMENT
    assert c.bcq_stop_push(stop.made, None, ctypes.c_size_t(1), *good[3:]) == BAD_ARGUMENT
    for end in ([None, text_at, size_at], [stop.made, None, size_at], [stop.made, text_at, None]):
        assert c.bcq_stop_end(*end) == BAD_ARGUMENT
    stop.close()
    c.bcq_stop_destroy(None)


def test_random_pieces_under_the_sanitizers(tmp_path: Path) -> None:
    program = build_program(tmp_path, "stop_strings_test", PARTS, SANITIZERS)
    assert run([program]) == "stop_strings_test: all passed\n"
