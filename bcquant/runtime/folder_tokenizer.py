"""The tokenizer files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcquant.errors import CheckpointError, ConfigError
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer
from bcquant.runtime.token_backends import (
    AddedToken,
    Backend,
    SentencePieceBackend,
    TokenizersBackend,
    load_tokenizer_json,
)

_BOS_BY_DEFAULT = {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer"}


def open_folder_tokenizer(folder: Path) -> Tokenizer:
    """Open `tokenizer.json`, else `tokenizer.model`, with the folder's settings.

    Raises:
        CheckpointError: neither is there, or a file is malformed.
        ConfigError: an added token needs matching rules that are not supported.
    """
    settings = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend: Backend = load_tokenizer_json(folder / "tokenizer.json")
    elif (folder / "tokenizer.model").is_file():
        backend = _open_sentencepiece(folder, settings)
    else:
        raise CheckpointError(
            f"{folder}: has neither tokenizer.json nor tokenizer.model; copy one from the "
            "original model"
        )
    return Tokenizer(backend, _special_tokens(folder, settings, backend))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when the file is not there.

    Raises:
        CheckpointError: it cannot be parsed or is not an object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; a JSON object is needed")
    return value


def _open_sentencepiece(folder: Path, settings: Mapping[str, Any]) -> SentencePieceBackend:
    path = folder / "tokenizer.model"
    proto = path.read_bytes()
    plain = SentencePieceBackend(proto, str(path))
    added = {
        token_id: token
        for token_id, token in _added_tokens(folder, settings).items()
        if plain.piece(token_id) != token.text
    }
    for token_id, token in added.items():
        if token_id < plain.vocab_size:
            raise ConfigError(
                f"{folder}: the added token {token.text!r} has id {token_id}, which "
                f"tokenizer.model gives to {plain.piece(token_id)!r}; convert the tokenizer to "
                "tokenizer.json first"
            )
    return SentencePieceBackend(proto, str(path), added) if added else plain


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    for text, token_id in read_json(folder / "added_tokens.json").items():
        added[_token_id(token_id, folder / "added_tokens.json")] = AddedToken(text, False)
    source = folder / "tokenizer_config.json"
    declared = settings.get("added_tokens_decoder", {})
    if not isinstance(declared, dict):
        raise CheckpointError(f"{source}: added_tokens_decoder is not an object")
    for key, token in declared.items():
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise CheckpointError(f"{source}: added_tokens_decoder[{key!r}] has no 'content'")
        unsupported = [rule for rule in ("lstrip", "rstrip", "single_word") if token.get(rule)]
        if unsupported:
            raise ConfigError(
                f"{source}: the token {token['content']!r} asks for {', '.join(unsupported)}, "
                "which a tokenizer.model cannot be given; convert the tokenizer to tokenizer.json "
                "first"
            )
        added[_token_id(key, source)] = AddedToken(token["content"], bool(token.get("special")))
    return added


def _token_id(value: object, source: Path) -> int:
    if isinstance(value, int | str) and str(value).isdecimal() and int(value) < 2**31:
        return int(value)
    raise CheckpointError(
        f"{source}: {value!r} is not a token id; a number from 0 to 2^31 - 1 is needed"
    )


def _special_tokens(folder: Path, settings: Mapping[str, Any], backend: Backend) -> SpecialTokens:
    config = read_json(folder / "config.json")
    generation = read_json(folder / "generation_config.json")

    def find(name: str) -> int | None:
        """The id that the tokenizer's settings name, else the model's."""
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return backend.find(text)
        ids = [*_ids(config.get(f"{name}_token_id")), *_ids(generation.get(f"{name}_token_id"))]
        return ids[0] if ids else None

    bos, eos = find("bos"), find("eos")
    ends = [
        *([] if eos is None else [eos]),
        *_ids(generation.get("eos_token_id")),
        *_ids(config.get("eos_token_id")),
    ]
    prefix, suffix = _frame(settings, backend, bos, eos)
    return SpecialTokens(
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(ends)),
        pad_id=find("pad"),
        prefix_ids=prefix,
        suffix_ids=suffix,
        chat_template=_chat_template(folder, settings),
    )


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]


def _frame(
    settings: Mapping[str, Any], backend: Backend, bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What goes around a text: the explicit settings, else the file's own post-processor."""
    adds_bos, adds_eos = settings.get("add_bos_token"), settings.get("add_eos_token")
    if isinstance(backend, TokenizersBackend) and adds_bos is None and adds_eos is None:
        return _post_processor_frame(backend)
    if adds_bos is None and isinstance(backend, SentencePieceBackend):
        adds_bos = settings.get("tokenizer_class") in _BOS_BY_DEFAULT
    return (
        (bos,) if adds_bos and bos is not None else (),
        (eos,) if adds_eos and eos is not None else (),
    )


def _post_processor_frame(backend: TokenizersBackend) -> tuple[tuple[int, ...], tuple[int, ...]]:
    probe = "a"
    plain = backend.tokenizer.encode(probe, add_special_tokens=False).ids
    framed = backend.tokenizer.encode(probe, add_special_tokens=True).ids
    start = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    return tuple(framed[:start]), tuple(framed[start + len(plain) :])


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
