"""The few fields of a SentencePiece ModelProto that bcquant writes and reads, without protobuf.

Source: sentencepiece_model.proto (field numbers) and the protobuf wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bcquant.errors import CheckpointError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE_BPE = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry; kind is NORMAL .. BYTE, the numbers of GGUF's token_type too."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Normalizer:
    """How text is prepared: NormalizerSpec with SentencePiece's defaults."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    charsmap: bytes = b""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the trainer spec; -1 where there is none."""

    unk: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = -1


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _blob(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FIXED32) + struct.pack("<f", value)


def write_bpe_model(pieces: Sequence[Piece], special: SpecialIds, normalizer: Normalizer) -> bytes:
    """Serialize a BPE model that the `sentencepiece` library loads.

    Returns:
        The bytes of a `tokenizer.model`.
    """
    out = bytearray()
    for piece in pieces:
        body = _blob(1, piece.text.encode()) + _float(2, piece.score) + _number(3, piece.kind)
        out += _blob(_PIECES, body)
    trainer = _number(3, _MODEL_TYPE_BPE) + _number(4, len(pieces))
    trainer += _number(35, int(any(piece.kind == BYTE for piece in pieces)))
    for id_field, name_field, token_id in (
        (40, 45, special.unk),
        (41, 46, special.bos),
        (42, 47, special.eos),
        (43, 48, special.pad),
    ):
        trainer += _number(id_field, token_id)
        if 0 <= token_id < len(pieces):
            trainer += _blob(name_field, pieces[token_id].text.encode())
    out += _blob(_TRAINER, trainer)
    spec = _blob(1, b"identity" if not normalizer.charsmap else b"user_defined")
    if normalizer.charsmap:
        spec += _blob(2, normalizer.charsmap)
    spec += _number(3, int(normalizer.add_dummy_prefix))
    spec += _number(4, int(normalizer.remove_extra_whitespaces)) + _number(5, 1)
    out += _blob(_NORMALIZER, spec)
    return bytes(out)


def read_normalizer(proto: bytes, name: str) -> Normalizer:
    """The normalizer of a serialized model.

    Raises:
        CheckpointError: the bytes are not a protobuf message.
    """
    prefix, squeeze, charsmap = True, True, b""
    for field, value in _fields(proto, name):
        if field != _NORMALIZER or not isinstance(value, bytes):
            continue
        for inner, setting in _fields(value, name):
            if inner == 2 and isinstance(setting, bytes):
                charsmap = setting
            elif inner == 3 and isinstance(setting, int):
                prefix = bool(setting)
            elif inner == 4 and isinstance(setting, int):
                squeeze = bool(setting)
    return Normalizer(prefix, squeeze, charsmap)


def is_bpe(proto: bytes, name: str) -> bool:
    """Whether a serialized model is BPE (the other common kind is Unigram).

    Raises:
        CheckpointError: the bytes are not a protobuf message.
    """
    kind = 1  # the default of trainer_spec.model_type is Unigram
    for field, value in _fields(proto, name):
        if field == _TRAINER and isinstance(value, bytes):
            kind = next((v for f, v in _fields(value, name) if f == 3 and isinstance(v, int)), kind)
    return kind == _MODEL_TYPE_BPE


def read_pieces(proto: bytes, name: str) -> list[Piece]:
    """The vocabulary of a serialized model, in id order.

    Raises:
        CheckpointError: the bytes are not a protobuf message.
    """
    pieces = []
    for field, value in _fields(proto, name):
        if field != _PIECES or not isinstance(value, bytes):
            continue
        text, score, kind = "", 0.0, NORMAL
        for inner, setting in _fields(value, name):
            if inner == 1 and isinstance(setting, bytes):
                text = setting.decode("utf-8", "replace")
            elif inner == 2 and isinstance(setting, bytes):
                score = struct.unpack("<f", setting)[0]
            elif inner == 3 and isinstance(setting, int):
                kind = setting
        pieces.append(Piece(text, score, kind))
    return pieces


def _fields(data: bytes, name: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each top-level field; fixed-width values come as their bytes."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position, name)
        wire = key & 7
        if wire == _VARINT:
            value, position = _read_varint(data, position, name)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, position = _read_varint(data, position, name)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise CheckpointError(
                f"{name}: wire type {wire} at byte {position}; not a SentencePiece model"
            )
        if size > len(data) - position:
            raise CheckpointError(
                f"{name}: a field at byte {position} has {size} bytes but {len(data) - position} "
                "remain; "
                "the file is truncated or is not a SentencePiece model"
            )
        yield key >> 3, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int, name: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise CheckpointError(
        f"{name}: a number at byte {position} does not end; not a SentencePiece model"
    )
