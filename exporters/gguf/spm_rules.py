"""How llama.cpp itself cuts text with a "llama" vocabulary, so that its ids are known beforehand.

It differs from SentencePiece in what it does beside merging: control and user-defined tokens are
cut out of the raw text one after the other, the longest first, and a space goes before every
stretch that follows one. Source: its src/llama-vocab.cpp; tests compare with llama-cpp-python.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from bcquant.runtime.sentencepiece_proto import CONTROL, UNKNOWN, USER_DEFINED
from bcquant.runtime.token_backends import SPACE_MARK

Part = str | int  # text still to be cut, or an id


class SpmRules:
    """Text to ids as llama.cpp does it.

    Args:
        tokens, scores, kinds: of every id; a user-defined token is spelled with real spaces.
        add_space_prefix: a space goes before the text and after every token that was cut out.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        kinds: Sequence[int],
        add_space_prefix: bool,
    ) -> None:
        self.scores, self.add_space_prefix = scores, add_space_prefix
        self.ids = {token: i for i, token in enumerate(tokens)}
        self._kinds, self._tokens = kinds, tokens
        whole = [i for i, k in enumerate(kinds) if k in (CONTROL, UNKNOWN, USER_DEFINED)]
        self._whole = sorted(whole, key=lambda i: -len(tokens[i].encode()))

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of a text, without begin and end tokens."""
        out: list[int] = []
        is_after_token = True
        for part in self._cut(text, parse_special):
            if isinstance(part, int):
                out.append(part)
            else:
                prefix = " " if self.add_space_prefix and is_after_token else ""
                out += self._merged((prefix + part).replace(" ", SPACE_MARK))
            is_after_token = isinstance(part, int)
        return out

    def _cut(self, text: str, parse_special: bool) -> list[Part]:
        parts: list[Part] = [text] if text else []
        for token_id in self._whole:
            token = self._tokens[token_id]
            if not token or token not in text:
                continue
            if not parse_special and self._kinds[token_id] != USER_DEFINED:
                continue
            cut: list[Part] = []
            for part in parts:
                if isinstance(part, int):
                    cut.append(part)
                    continue
                stretches = part.split(token)
                for position, stretch in enumerate(stretches):
                    cut += ([token_id] if position else []) + ([stretch] if stretch else [])
            parts = cut
        return parts

    def _merged(self, text: str) -> list[int]:
        """Neighbours merged by score, the leftmost first, wherever both together are a token."""
        symbols = list(text)
        after = [*range(1, len(symbols)), -1]
        before = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            token_id = self.ids.get(symbols[left] + symbols[right])
            if token_id is not None:
                size = len(symbols[left]) + len(symbols[right])
                heapq.heappush(queue, (-self.scores[token_id], left, right, size))

        for right in range(1, len(symbols)):
            offer(right - 1, right)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            # Empty = merged away meanwhile; another length = grown meanwhile.
            if not symbols[left] or not symbols[right]:
                continue
            if len(symbols[left]) + len(symbols[right]) != size:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [i for symbol in symbols if symbol for i in self._ids_of(symbol)]

    def _ids_of(self, symbol: str) -> list[int]:
        token_id = self.ids.get(symbol)
        if token_id is not None:
            return [token_id]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
