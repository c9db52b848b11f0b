from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bcquant.errors import ConfigError
from bcquant.runtime.stop_strings import StopStrings


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_join_to_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    filtered = StopStrings(stops)
    shown, whole = "", ""
    for piece in pieces:
        shown += filtered.push(piece)
        whole += piece
        if filtered.is_found:
            break
    shown += filtered.flush()
    ends = [at for at in map(whole.find, stops) if at >= 0]
    assert filtered.is_found == bool(ends)
    assert shown == (whole[: min(ends)] if ends else whole)


def test_start_of_a_stop_string_is_held_back() -> None:
    filtered = StopStrings(["END"])
    assert filtered.push("abcE") == "abc"
    assert filtered.push("N") == ""
    assert filtered.push("x") == "ENx"


def test_nothing_comes_after_a_stop() -> None:
    filtered = StopStrings(["."])
    assert filtered.push("a.b") == "a"
    assert filtered.push("c") == ""
    assert filtered.flush() == ""


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop string is empty"):
        StopStrings(["a", ""])
