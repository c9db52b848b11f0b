"""The sections of a package that are no tensors: tokenizer, chat, defaults, origin, certificate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bcquant.errors import ExportError
from bcquant.io.package_index import (
    CERTIFICATE,
    CHAT_FRAMES,
    CHAT_TEMPLATE,
    GENERATION,
    ORIGIN,
    TOKENIZER,
    section_name,
)
from bcquant.models.source import ModelSource
from bcquant.runtime.text_codec import SpecialTokens
from bcquant.runtime.tokenizer import has_tokenizer, open_tokenizer

from .options import MobileOptions
from .origin import origin, read_certificate
from .texts import chat_frames, generation_defaults
from .tokenizer_section import tokenizer_section


@dataclass(frozen=True)
class Texts:
    """What the sections hold.

    Attributes:
        sections: kind -> bytes; kinds of which the model has nothing are left out.
        special: the tokenizer's begin, end and padding tokens; None without a tokenizer.
        notes: what a user should know, one sentence each.
    """

    sections: dict[int, bytes]
    special: SpecialTokens | None = None
    notes: tuple[str, ...] = ()


def read_texts(source: ModelSource, options: MobileOptions) -> Texts:
    """Make all of them; the weight files are read once, for their digests.

    Raises:
        ExportError: the tokenizer or a text has no place in the format.
        CheckpointError: the tokenizer or the certificate cannot be read.
        ConfigError: the certificate is none, did not pass, or is of another source.
    """
    special, notes = None, []
    found: dict[int, bytes] = {}
    if has_tokenizer(source):
        tokenizer = open_tokenizer(source.path)
        special = tokenizer.special
        found[TOKENIZER] = tokenizer_section(tokenizer, source.config.vocab_size, str(source.path))
        found[CHAT_TEMPLATE] = _utf8(source, CHAT_TEMPLATE, tokenizer.chat_template or "")
        frames = chat_frames(tokenizer) if tokenizer.chat_template else None
        found[CHAT_FRAMES] = _json(source, CHAT_FRAMES, frames)
        if tokenizer.chat_template and frames is None:
            notes.append(
                "the chat template's text depends on more than the messages, so an app has to "
                "render it (section 65)"
            )
    else:
        notes.append(f"{source.path} has no tokenizer, so the package is driven by ids")
    found[GENERATION] = _json(source, GENERATION, generation_defaults(source))
    came_from = origin(source)
    found[ORIGIN] = _json(source, ORIGIN, came_from)
    if options.certificate is not None:
        found[CERTIFICATE] = read_certificate(options.certificate, came_from)
    return Texts({kind: data for kind, data in found.items() if data}, special, tuple(notes))


def _json(source: ModelSource, kind: int, value: Any) -> bytes:
    """Compact JSON; nothing for an empty value."""
    if not value:
        return b""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ExportError(f"{source.path}: {section_name(kind, None)}: {error}") from error
    return _utf8(source, kind, text)


def _utf8(source: ModelSource, kind: int, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ExportError(
            f"{source.path}: {section_name(kind, None)} has a lone surrogate at character "
            f"{error.start}; correct it in the checkpoint"
        ) from error
