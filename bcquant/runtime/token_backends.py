"""The two tokenizer libraries behind one small interface: text to ids, one id to its bytes.

Decoding is done here, byte by byte, and not by the libraries: the bytes of a token do not depend on
its neighbours, so a stream and a whole decode give the same text (see decode_stream.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bcquant.errors import CheckpointError, ConfigError
from bcquant.io.mapped_file import MappedFile
from bcquant.runtime.sentencepiece_proto import read_normalizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

SPACE_MARK = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_UNKNOWN_SURFACE = " \u2047 ".encode()


class Backend(Protocol):
    """What a tokenizer library has to give."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the largest id plus one."""

    @property
    def strips_prefix(self) -> bool:
        """The encoder puts a space before the text, so decoding a whole text takes one off."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, without begin and end tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes, maybe an incomplete character; empty for an id that names no token."""

    def is_special(self, token_id: int) -> bool:
        """A control or unknown token: not part of the text."""

    def piece(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""

    def find(self, piece: str) -> int | None:
        """The id of a vocabulary entry."""


def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level vocabulary.

    Printable Latin-1 characters stand for themselves; the other 68 bytes take U+0100 and up.
    Source: GPT-2's published byte-level BPE.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + i): byte for i, byte in enumerate(rest)})
    return table


class TokenizersBackend:
    """A `tokenizers.Tokenizer` with a byte-level or a SentencePiece-like decoder.

    Raises:
        ConfigError: the decoder is of another kind, so the bytes of a token are not defined.
    """

    def __init__(self, tokenizer: RustTokenizer, name: str) -> None:
        self.tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._byte_level, self._strips_prefix = _decoder_kind(tokenizer, name)
        self._alphabet = byte_alphabet()
        self._vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def vocab_size(self) -> int:
        """Number of ids, the largest id plus one."""
        return self._vocab_size

    @property
    def strips_prefix(self) -> bool:
        """Whether decoding a whole text takes a space off its start."""
        return self._strips_prefix

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, without begin and end tokens."""
        self.tokenizer.encode_special_tokens = not parse_special
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes, maybe an incomplete character; empty for an unknown id."""
        piece = self.piece(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return piece.encode()
        if self._byte_level:
            if all(c in self._alphabet for c in piece):
                return bytes(self._alphabet[c] for c in piece)
            return piece.encode()
        return _marked_bytes(piece)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is not part of the text."""
        added = self._added.get(token_id)
        return added is not None and bool(added.special)

    def piece(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        if not 0 <= token_id < self._vocab_size:
            return None
        found: str | None = self.tokenizer.id_to_token(token_id)
        return found

    def find(self, piece: str) -> int | None:
        """The id of a vocabulary entry."""
        found: int | None = self.tokenizer.token_to_id(piece)
        return found


def _marked_bytes(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE_MARK, " ").encode()


def _decoder_kind(tokenizer: RustTokenizer, name: str) -> tuple[bool, bool]:
    """(byte level, strips a leading space) from the decoder's own description."""
    decoder = tokenizer.decoder
    state: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {}
    steps = state.get("decoders", [state])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return True, False
    if kinds & {"ByteFallback", "Metaspace"}:
        strips = any(
            (step.get("type") == "Strip" and step.get("start", 0) > 0)
            or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in steps
        )
        return False, strips
    raise ConfigError(
        f"{name}: its decoder is {sorted(map(str, kinds))}; a byte-level or a SentencePiece-like "
        "one (ByteFallback, Metaspace) is needed; WordPiece and the like are not supported"
    )


def load_tokenizer_json(path: Path) -> TokenizersBackend:
    """Read a `tokenizer.json`.

    Raises:
        CheckpointError: the file is missing, or cannot be read or parsed.
        ConfigError: its decoder is of an unsupported kind.
    """
    from tokenizers import Tokenizer as RustTokenizer

    with MappedFile(path):
        pass  # its own sentences for what is missing or empty
    try:
        tokenizer = RustTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise CheckpointError(
            f"{path}: not a readable tokenizer.json ({error}); download it again"
        ) from error
    return TokenizersBackend(tokenizer, str(path))


@dataclass(frozen=True)
class AddedToken:
    """A token beside the SentencePiece vocabulary (`added_tokens_decoder`, `added_tokens.json`)."""

    text: str
    is_special: bool


class SentencePieceBackend:
    """A SentencePiece model, plus the tokens that a checkpoint adds beside it.

    Control pieces and added tokens are found in the text first; each stretch between them is
    encoded by itself, so it gets the dummy prefix if the model has one.

    Raises:
        CheckpointError: the bytes are not a SentencePiece model.
    """

    def __init__(
        self, proto: bytes, name: str, added: Mapping[int, AddedToken] | None = None
    ) -> None:
        self.proto = proto
        self._processor = _load_processor(proto, name)
        normalizer = read_normalizer(proto, name)
        self._num_pieces: int = self._processor.get_piece_size()
        self.added = dict(added or {})
        self._strips_prefix = normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces
        self._special_ids = {token.text: i for i, token in self.added.items()}
        for i in range(self._num_pieces):
            if self._processor.is_control(i) or self._processor.is_unknown(i):
                self._special_ids.setdefault(self._processor.id_to_piece(i), i)
        longest_first = sorted((t for t in self._special_ids if t), key=len, reverse=True)
        self._splitter = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else None
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids, the largest id plus one."""
        return max(self._num_pieces, max(self.added, default=-1) + 1)

    @property
    def strips_prefix(self) -> bool:
        """Whether decoding a whole text takes a space off its start."""
        return self._strips_prefix

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, without begin and end tokens."""
        if not parse_special or self._splitter is None:
            return list(self._processor.encode(text))
        ids: list[int] = []
        for position, part in enumerate(self._splitter.split(text)):
            if position % 2:
                ids.append(self._special_ids[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes, maybe an incomplete character; empty for an unknown id."""
        if token_id in self.added:
            return self.added[token_id].text.encode()
        if not 0 <= token_id < self._num_pieces:
            return b""
        if self._processor.is_unknown(token_id):
            return _UNKNOWN_SURFACE
        piece: str = self._processor.id_to_piece(token_id)
        return (
            _marked_bytes(piece)
            if self._processor.is_byte(token_id)
            else piece.replace(SPACE_MARK, " ").encode()
        )

    def is_special(self, token_id: int) -> bool:
        """Whether the token is not part of the text."""
        if token_id in self.added:
            return self.added[token_id].is_special
        return 0 <= token_id < self._num_pieces and bool(self._processor.is_control(token_id))

    def piece(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        if token_id in self.added:
            return self.added[token_id].text
        if not 0 <= token_id < self._num_pieces:
            return None
        found: str = self._processor.id_to_piece(token_id)
        return found

    def find(self, piece: str) -> int | None:
        """The id of a vocabulary entry."""
        if piece in self._special_ids:
            return self._special_ids[piece]
        found: int = self._processor.piece_to_id(piece)
        return found if self._processor.id_to_piece(found) == piece else None


def _load_processor(proto: bytes, name: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        raise CheckpointError(
            f"{name}: not a SentencePiece model ({error}); download it again"
        ) from error
    return processor
