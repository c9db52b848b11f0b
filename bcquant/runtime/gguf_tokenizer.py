"""The tokenizer inside a GGUF file, rebuilt for the library that its kind belongs to.

Source: the GGUF specification's `tokenizer.ggml.*` keys; the splits are those of the models' own
published tokenizer.json files. transformers' conversion ignores `tokenizer.ggml.pre` for some kinds
(smollm among them) and then differs from the model's tokenizer where spaces precede a digit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant.errors import CheckpointError, ConfigError
from bcquant.registry import nearest
from bcquant.runtime.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    Normalizer,
    Piece,
    SpecialIds,
    write_bpe_model,
)
from bcquant.runtime.text_codec import SpecialTokens, Tokenizer
from bcquant.runtime.token_backends import (
    SPACE_MARK,
    SentencePieceBackend,
    TokenizersBackend,
)

if TYPE_CHECKING:
    from tokenizers import pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_CASED_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_LLAMA3 = (f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACE}",)
_QWEN2 = (f"{_CONTRACTIONS}|{_WORD}|\\p{{N}}|{_SYMBOLS_AND_SPACE}",)
_TEKKEN = (f"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\\p{{N}}|{_CASED_SPACE}",)
_GPT4O = (
    f"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    f"|\\p{{N}}{{1,3}}|{_CASED_SPACE}",
)
_DIGITS_FIRST = (r"\p{N}", _GPT2)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

# tokenizer.ggml.pre -> the expressions that cut the text, one after the other.
SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "trillion"), (_GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _DIGITS_FIRST,
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), _LLAMA3
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "default": _DEFAULT,
}
# Kinds whose tokenizer.json takes a whole word of the vocabulary before trying merges.
_WHOLE_WORDS_FIRST = {
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "pixtral",
    "tekken",
    "gpt-4o",
    "llama4",
}
_NFC = {"qwen2", "deepseek-r1-qwen"}


def open_gguf_tokenizer(path: Path) -> Tokenizer:
    """Rebuild the tokenizer of a GGUF file.

    Raises:
        CheckpointError: the file or its tokenizer keys are malformed.
        ConfigError: the kind (`tokenizer.ggml.model`, `tokenizer.ggml.pre`) is not supported.
    """
    return tokenizer_from_metadata(read_gguf_metadata(path), str(path))


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """The key/value pairs of a GGUF file, validated by the checkpoint reader.

    Raises:
        CheckpointError: the file is missing or malformed.
    """
    from bcquant.io.checkpoint import open_checkpoint

    with open_checkpoint(path) as reader:
        return dict(reader.metadata)


def tokenizer_from_metadata(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that `tokenizer.ggml.*` keys describe.

    Args:
        name: what to call the file in an error.
    Raises:
        CheckpointError, ConfigError: as `open_gguf_tokenizer`.
    """
    kind = metadata.get("tokenizer.ggml.model")
    builders: dict[
        str, Callable[[Mapping[str, Any], str], SentencePieceBackend | TokenizersBackend]
    ]
    builders = {"gpt2": _byte_level_backend, "llama": _sentencepiece_backend}
    if kind not in builders:
        raise ConfigError(
            f"{name}: tokenizer.ggml.model is {kind!r}; 'gpt2' (byte-level BPE) or 'llama' "
            "(SentencePiece "
            "BPE) is needed; use the model's original folder instead"
        )
    backend = builders[kind](metadata, name)
    return Tokenizer(backend, _special_tokens(metadata, name, backend.vocab_size, kind == "llama"))


def _special_tokens(
    metadata: Mapping[str, Any], name: str, vocab_size: int, adds_bos_by_default: bool
) -> SpecialTokens:
    def token_id(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < vocab_size:
            raise CheckpointError(
                f"{name}: tokenizer.ggml.{key}_token_id is {value!r}; an id below {vocab_size} is "
                "needed"
            )
        return value

    bos = token_id("bos")
    ends = [i for i in map(token_id, ("eos", "eot", "eom")) if i is not None]
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", adds_bos_by_default)
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    template = metadata.get("tokenizer.chat_template")
    return SpecialTokens(
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(ends)),
        pad_id=token_id("padding"),
        prefix_ids=(bos,) if adds_bos and bos is not None else (),
        suffix_ids=(ends[0],)
        if adds_eos and metadata.get("tokenizer.ggml.eos_token_id") is not None
        else (),
        chat_template=template if isinstance(template, str) else None,
    )


def _strings(metadata: Mapping[str, Any], key: str, name: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values) or not values:
        raise CheckpointError(
            f"{name}: tokenizer.ggml.{key} is missing or is not a list of strings; download it "
            "again"
        )
    return values


def _numbers(
    metadata: Mapping[str, Any], key: str, name: str, count: int, default: float
) -> list[float]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is None:
        return [default] * count
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(v, int | float) for v in values)
    ):
        raise CheckpointError(
            f"{name}: tokenizer.ggml.{key} is not a list of {count} numbers, one for each token"
        )
    return values


def _byte_level_backend(metadata: Mapping[str, Any], name: str) -> TokenizersBackend:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens = _strings(metadata, "tokens", name)
    kinds = _numbers(metadata, "token_type", name, len(tokens), NORMAL)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise CheckpointError(f"{name}: the token {twice!r} comes twice in tokenizer.ggml.tokens")
    pre = metadata.get("tokenizer.ggml.pre")
    pre_tokenizer = _pre_tokenizer(pre, name)
    merges = [_merge(line, name) for line in _strings(metadata, "merges", name)]
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except (
        Exception
    ) as error:  # the library raises plain Exception, here for a merge outside the vocabulary
        raise CheckpointError(
            f"{name}: tokenizer.ggml.merges do not fit the tokens ({error})"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if pre in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, k in zip(tokens, kinds, strict=True) if k in (CONTROL, UNKNOWN) and t]
    plain = [t for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED and t]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in plain])
    return TokenizersBackend(tokenizer, name)


def _merge(line: str, name: str) -> tuple[str, str]:
    # The first piece has at least one character, so a space at position 0 belongs to it.
    cut = line.find(" ", 1)
    if cut < 0 or cut == len(line) - 1:
        raise CheckpointError(f"{name}: the merge {line!r} is not two pieces with a space between")
    return line[:cut], line[cut + 1 :]


def _pre_tokenizer(pre: Any, name: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if not isinstance(pre, str):
        raise ConfigError(
            f"{name}: has no tokenizer.ggml.pre, so how it cuts text is not known; convert the "
            "model to "
            "GGUF again with a converter of 2024-05 or later, or use the model's original folder"
        )
    if pre not in SPLITS:
        raise ConfigError(
            f"{name}: tokenizer.ggml.pre is {pre!r}, which is not supported; "
            f"{nearest(pre, sorted(SPLITS))} "
            "or use the model's original folder"
        )
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in SPLITS[pre]
    ]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _sentencepiece_backend(metadata: Mapping[str, Any], name: str) -> SentencePieceBackend:
    tokens = _strings(metadata, "tokens", name)
    kinds = [int(k) for k in _numbers(metadata, "token_type", name, len(tokens), NORMAL)]
    scores = _numbers(metadata, "scores", name, len(tokens), 0.0)
    bad = next((k for k in kinds if not NORMAL <= k <= BYTE), None)
    if bad is not None:
        raise CheckpointError(
            f"{name}: tokenizer.ggml.token_type holds {bad}; {NORMAL} to {BYTE} are defined"
        )

    def token_id(key: str, default: int) -> int:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id", default)
        return value if isinstance(value, int) and 0 <= value < len(tokens) else -1

    charsmap = metadata.get("tokenizer.ggml.precompiled_charsmap", [])
    normalizer = Normalizer(
        add_dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(
            metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
        ),
        charsmap=bytes(v & 0xFF for v in charsmap) if isinstance(charsmap, list) else b"",
    )
    unknown = kinds.index(UNKNOWN) if UNKNOWN in kinds else 0
    kinds[unknown] = UNKNOWN  # the library needs exactly one, and files exist that mark none
    special = SpecialIds(unknown, token_id("bos", -1), token_id("eos", -1), token_id("padding", -1))
    # User-defined pieces have plain spaces in a GGUF; the library matches escaped text.
    spelled = [
        t.replace(" ", SPACE_MARK) if k == USER_DEFINED else t
        for t, k in zip(tokens, kinds, strict=True)
    ]
    pieces = [Piece(t, s, k) for t, s, k in zip(spelled, scores, kinds, strict=True)]
    return SentencePieceBackend(write_bpe_model(pieces, special, normalizer), name)
