"""Ids in, text out, a piece at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class DecodeStream:
    """Turns a stream of ids into text that is valid at every step.

    The bytes of each token go through an incremental UTF-8 decoder: it holds back the start of a
    character until the rest has come, and replaces what can never become one by U+FFFD. So
    "".join(push(id) for each id) + flush() equals the decoding of all ids at once.

    Args:
        token_bytes: bytes of an id; empty for ids that are not to be shown.
        strip_space: take off one space at the start (the encoder's dummy prefix).
    """

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool = False) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_space = strip_space

    def push(self, token_id: int) -> str:
        """Text that became complete with this id; "" while a character is incomplete."""
        data = self._token_bytes(token_id)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is held back, as U+FFFD; the stream can be used again afterwards."""
        return self._decoder.decode(b"", final=True)
