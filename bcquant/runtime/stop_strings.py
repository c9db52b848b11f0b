"""Ending a text at the first of some strings, without showing a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from bcquant.errors import ConfigError


class StopStrings:
    """Holds back the end of a text while it may be the start of a stop string.

    Args:
        stops: strings that end the text; they are not part of it.
    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise ConfigError("a stop string is empty; give at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.is_found = False

    def push(self, piece: str) -> str:
        """Text that can be shown now; after a stop string was found, nothing more."""
        if self.is_found:
            return ""
        text = self._held + piece
        places = [at for at in map(text.find, self._stops) if at >= 0]
        if places:
            self.is_found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What is held back at the end of the generation."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
