"""The tokenizer files of a written checkpoint, such that others load the same ids from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant.io.atomic import atomic_write_bytes, atomic_write_json
from bcquant.runtime.folder_tokenizer import read_json
from bcquant.runtime.gguf_tokenizer import read_gguf_metadata, tokenizer_from_metadata
from bcquant.runtime.sentencepiece_json import convert_sentencepiece
from bcquant.runtime.token_backends import SentencePieceBackend, TokenizersBackend
from bcquant.runtime.tokenizer import Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

# Files that are copied as they are; tokenizer_config.json is edited.
_COPIED = (
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
# transformers 5 rebuilds a LlamaTokenizer from the vocabulary alone and drops the normalizer and
# pre-tokenizer of tokenizer.json; this class, known to transformers 4 and 5, takes the file as is.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def export_tokenizer(src_path: str | Path, out_dir: str | Path) -> list[str]:
    """Write the tokenizer of a checkpoint into a folder.

    From a folder its files are copied; custom code is dropped (`auto_map`), and a folder that has
    only `tokenizer.model` also gets a `tokenizer.json` whose ids were checked against it. From a
    GGUF everything is rebuilt. AutoTokenizer of transformers then gives the ids that
    `open_tokenizer` gives.

    Args:
        src_path: checkpoint folder, weight file in one, or GGUF file.
        out_dir: made if it is not there; same input, same bytes.
    Returns:
        names of the files written, sorted.
    Raises:
        CheckpointError, ConfigError: the source cannot be read.
        ExportError: the tokenizer has no equivalent, or a file cannot be written.
    """
    source, target = Path(src_path), Path(out_dir)
    if source.suffix.lower() == ".gguf":
        files = _gguf_files(source)
    else:
        files = _folder_files(source if source.is_dir() else source.parent)
    for name, content in sorted(files.items()):
        if isinstance(content, bytes):
            atomic_write_bytes(target / name, content)
        else:
            atomic_write_json(target / name, content)
    return sorted(files)


def _folder_files(folder: Path) -> dict[str, bytes | dict[str, Any]]:
    tokenizer = open_tokenizer(folder)
    files: dict[str, bytes | dict[str, Any]] = {
        name: (folder / name).read_bytes() for name in _COPIED if (folder / name).is_file()
    }
    if isinstance(tokenizer.backend, SentencePieceBackend):
        converted = convert_sentencepiece(tokenizer.backend, str(folder / "tokenizer.model"))
        files["tokenizer.json"] = _framed_json(converted, tokenizer)
    settings = read_json(folder / "tokenizer_config.json")
    settings.pop("auto_map", None)
    files["tokenizer_config.json"] = {**settings, **_settings(tokenizer, settings)}
    return files


def _gguf_files(path: Path) -> dict[str, bytes | dict[str, Any]]:
    metadata = read_gguf_metadata(path)
    tokenizer = tokenizer_from_metadata(metadata, str(path))
    files: dict[str, bytes | dict[str, Any]] = {}
    if isinstance(tokenizer.backend, SentencePieceBackend):
        files["tokenizer.model"] = tokenizer.backend.proto
        converted = convert_sentencepiece(tokenizer.backend, str(path))
    else:
        assert isinstance(tokenizer.backend, TokenizersBackend)
        converted = tokenizer.backend.tokenizer
    files["tokenizer.json"] = _framed_json(converted, tokenizer)
    settings = _settings(tokenizer, {})
    architecture = metadata.get("general.architecture")
    context = metadata.get(f"{architecture}.context_length")
    if isinstance(context, int):
        settings["model_max_length"] = context
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    files["tokenizer_config.json"] = settings
    generation = _generation_config(tokenizer)
    if generation:
        files["generation_config.json"] = generation
    return files


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    ends = list(tokenizer.eos_ids)
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in values.items() if value is not None}


def _settings(tokenizer: Tokenizer, source: dict[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json must say; tokens that the source names keep its spelling."""
    settings: dict[str, Any] = {"tokenizer_class": _TOKENIZER_CLASS}
    special = tokenizer.special
    eos = special.eos_ids[0] if special.eos_ids else None
    for key, token_id in (
        ("bos_token", special.bos_id),
        ("eos_token", eos),
        ("pad_token", special.pad_id),
    ):
        piece = None if token_id is None else tokenizer.backend.piece(token_id)
        if source.get(key) is None and piece is not None:
            settings[key] = piece
    # A post-processor of tokenizer.json may add more than bos and eos; then it is left to the file.
    if special.prefix_ids in ((), (special.bos_id,)) and special.suffix_ids in ((), (eos,)):
        settings["add_bos_token"] = bool(special.prefix_ids)
        settings["add_eos_token"] = bool(special.suffix_ids)
    if "clean_up_tokenization_spaces" not in source:
        settings["clean_up_tokenization_spaces"] = False
    return settings


def _framed_json(tokenizer: RustTokenizer, owner: Tokenizer) -> bytes:
    """`tokenizer.json` with a post-processor that adds the begin and end tokens."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers.processors import TemplateProcessing

    framed = RustTokenizer.from_str(tokenizer.to_str())
    frame = {
        i: owner.backend.piece(i) or ""
        for i in (*owner.special.prefix_ids, *owner.special.suffix_ids)
    }
    if frame:
        before, after = (
            [frame[i] for i in ids] for ids in (owner.special.prefix_ids, owner.special.suffix_ids)
        )
        framed.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[
                *before,
                "$A",
                *after,
                *(f"{t}:1" for t in before),
                "$B:1",
                *(f"{t}:1" for t in after),
            ],
            special_tokens=[(piece, token_id) for token_id, piece in frame.items()],
        )
    text: str = framed.to_str(pretty=False)
    return text.encode()
