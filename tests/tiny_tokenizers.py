"""Tiny tokenizer folders of every kind, and texts on which readers of them disagree."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[\u4e00-\u9fa5]+"
USER_DEFINED = ["<u1>", "<u12>", "=="]
TEXTS = (
    "", "a", " a", "  a", "   leading three", "trailing  ", "a  b   c", "\n", "\n\n", "a\nb",
    "\ta\t\tb", "a\n  b", "a \n b", "x\n ", "\r\n", "a\r\n\r\n  b", " ", "  ", "    ",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u6df7\u5408 English \u548c \u4e2d\u6587 123",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 emoji", "\u00e9 e\u0301 \u00f1",
    "\ufb01 \u2167 \u00bd \u00b2", "\u00a0nbsp", "\ufeffbom", "don't I'LL we've", "x=1;y+=2;//c",
    "1234567890 3.14 a1b22c333", "\u0410\u0411\u0412 \u0433\u0434\u0435", "\u0627\u0644\u0639",
    "\u0939\u093f\u0928", "\u65e5\u672c\u8a9e", "<s>hello</s>", "a</s>b", "a</s> b",
    "\u2581underscore", "a\u2581b", "\x01\x02", "def f(x):\n    return x\n", "<0x41>", "\u3000x",
    "\U00020bb7\u91ce", "\ud7ff", "\u0663\u0664", "x" * 300, "<u1>", "a<u1>b",
    " <u1> <u12>x ==== === a", "__proto__ constructor",
)  # fmt: skip


def split(pattern: str, behavior: str = "isolated") -> Any:
    """A Split pre-tokenizer."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behavior)


def bytes_step(**settings: Any) -> Any:
    """A ByteLevel pre-tokenizer."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **settings})


def pre_tokenizer_steps(kind: str) -> list[Any]:
    """Pre-tokenizers of a byte-level BPE, as families have them or as readers get them wrong."""
    from tokenizers import pre_tokenizers

    bare = bytes_step(use_regex=False)
    single = pre_tokenizers.Digits(individual_digits=True)
    kinds = {
        "gpt2": [bytes_step()],
        "single_digits": [single, bytes_step()],
        "digits": [pre_tokenizers.Digits(individual_digits=False), bytes_step()],
        "llama3": [split(LLAMA3), bare],
        "two_splits": [split(r"\p{N}"), split(GPT2), bare],
        "split_and_own_pattern": [split(r"\p{N}"), bytes_step()],
        "prefix_space": [bytes_step(add_prefix_space=True)],
        "no_pattern": [bare],
        "beyond_ascii": [split("[\r\n]"), split(r"\s+$"), split(CJK), single, bare],
        "removed": [split(" ", "removed"), bare],
        "punctuation": [pre_tokenizers.Punctuation(), bare],
    }
    return kinds[kind]


def byte_level_folder(
    folder: Path, kind: str, normalizer: Any = None, added: tuple[Any, ...] = ()
) -> Path:
    """A folder with a byte-level tokenizer.json; pad, bos and eos are 0, 1 and 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(pre_tokenizer_steps(kind))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_lines(), "  1234 12 \u4f60\u597d \n\n " * 9], trainer)
    tokenizer.add_tokens(list(added))
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return _with_settings(folder, add_bos=False)


def sentencepiece_folder(folder: Path, add_bos: bool = False, **training: Any) -> Path:
    """A folder with a tokenizer.model: BPE with byte fallback; `training` goes to the trainer."""
    import sentencepiece

    out = io.BytesIO()
    settings = {"remove_extra_whitespaces": False, **training}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()), model_writer=out, vocab_size=380, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", minloglevel=2, num_threads=1,
        **settings,
    )  # fmt: skip
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(out.getvalue())
    return _with_settings(folder, add_bos)


def _with_settings(folder: Path, add_bos: bool) -> Path:
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _lines() -> list[str]:
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics)[:12])
    return [line for line in text.splitlines() if line.strip() and line.isascii()][:300]
