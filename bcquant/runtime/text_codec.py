"""Text to ids and back: one vocabulary with its special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bcquant.runtime.chat import Message, render_chat
from bcquant.runtime.decode_stream import DecodeStream
from bcquant.runtime.token_backends import Backend


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that frame a text, and the text format of a conversation.

    Attributes:
        prefix_ids, suffix_ids: what `encode` puts before and after a text.
        eos_ids: ids that end a generation, the tokenizer's own first.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    chat_template: str | None = None


class Tokenizer:
    """One vocabulary with its special tokens.

    Attributes:
        backend: the library behind it.
        special: bos, eos, pad and the chat template.
    """

    def __init__(self, backend: Backend, special: SpecialTokens) -> None:
        self.backend = backend
        self.special = special

    @property
    def vocab_size(self) -> int:
        """Number of ids (largest id + 1); a model's vocabulary may be padded beyond it."""
        return self.backend.vocab_size

    @property
    def bos_id(self) -> int | None:
        """Begin-of-text id."""
        return self.special.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        return self.special.eos_ids

    @property
    def pad_id(self) -> int | None:
        """Padding id."""
        return self.special.pad_id

    @property
    def chat_template(self) -> str | None:
        """Jinja template of a conversation; None for a model that has none."""
        return self.special.chat_template

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            add_special: put the begin and end tokens around it that the model was trained with.
            parse_special: a special token spelled out in the text ("</s>") becomes its id, as in
                transformers; False keeps it plain text, which is safer for untrusted input.
        """
        # A lone surrogate (from a bad argv byte) has no UTF-8 form; both libraries would raise.
        clean = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        ids = self.backend.encode(clean, parse_special)
        if not add_special:
            return ids
        return [*self.special.prefix_ids, *ids, *self.special.suffix_ids]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, ending where the assistant is to answer.

        Raises:
            ConfigError: the model has no chat template, or it refuses the messages.
        """
        bos = "" if self.bos_id is None else self.backend.piece(self.bos_id) or ""
        eos = self.backend.piece(self.eos_ids[0]) or "" if self.eos_ids else ""
        text = render_chat(self.chat_template, messages, bos_token=bos, eos_token=eos)
        return self.encode(text, add_special=False)

    def decode(self, ids: Iterable[int], keep_special: bool = False) -> str:
        """Text of ids; bytes that form no character become U+FFFD.

        Args:
            keep_special: show special tokens as they are spelled.
        """
        stream = self.stream(keep_special=keep_special, is_continuation=False)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def stream(self, keep_special: bool = False, is_continuation: bool = True) -> DecodeStream:
        """A decoder for ids that come one by one.

        Args:
            is_continuation: the ids go on after a prompt, so a leading space is real.
        """

        def token_bytes(token_id: int) -> bytes:
            if self.backend.is_special(token_id):
                piece = self.backend.piece(token_id)
                return piece.encode() if keep_special and piece else b""
            return self.backend.token_bytes(token_id)

        return DecodeStream(token_bytes, self.backend.strips_prefix and not is_continuation)
