"""Complete tiny checkpoints: config.json, weights and a tokenizer of the same vocabulary.

`make_checkpoint("llama", tmp_path / "m")` writes one that every verb takes. Baichuan families get a
SentencePiece `tokenizer.model` as their own checkpoints have it, the others a `tokenizer.json`.
"""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

from factory import make_tiny, make_tiny_gguf

VOCAB_SIZE = 384  # 3 special tokens, 256 bytes, and merges
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def make_checkpoint(family: str, folder: str | Path, **factory_args: Any) -> Path:
    """Write a checkpoint folder and return it.

    Args:
        family: a key of `factory.FAMILIES`.
        factory_args: of `factory.make_tiny`: dtype, seed, max_shard_bytes, keys of config.json.
    """
    factory_args.setdefault("vocab_size", VOCAB_SIZE)
    path = make_tiny(family, folder, **factory_args)
    write_tokenizer(path, family.startswith("baichuan"), factory_args["vocab_size"])
    return path


def make_gguf_checkpoint(family: str, path: str | Path, **factory_args: Any) -> Path:
    """Write a GGUF file with the byte-level tokenizer of `make_checkpoint` inside."""
    from unittest.mock import patch

    from gguf import GGUFWriter

    factory_args.setdefault("vocab_size", VOCAB_SIZE)
    model = json.loads(byte_level_json(factory_args["vocab_size"]))["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]

    class WithTokenizer(GGUFWriter):
        def write_header_to_file(self, *args: Any, **kwargs: Any) -> None:
            self.add_tokenizer_model("gpt2")
            self.add_tokenizer_pre("gpt-2")
            self.add_token_list(pieces)
            self.add_token_types([3] * 3 + [1] * (len(pieces) - 3))  # control, normal
            self.add_token_merges(merges)
            super().write_header_to_file(*args, **kwargs)

    with patch("gguf.GGUFWriter", WithTokenizer):
        return make_tiny_gguf(family, path, **factory_args)


def write_tokenizer(folder: Path, is_sentencepiece: bool, vocab_size: int) -> None:
    """Tokenizer files of `vocab_size` ids; pad, bos and eos are 0, 1 and 2."""
    settings: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS}
    if is_sentencepiece:
        (folder / "tokenizer.model").write_bytes(sentencepiece_proto(vocab_size))
        settings |= {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False}
    else:
        (folder / "tokenizer.json").write_text(byte_level_json(vocab_size), encoding="utf-8")
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@functools.cache
def byte_level_json(vocab_size: int) -> str:
    """A byte-level BPE tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    text: str = tokenizer.to_str()
    return text


@functools.cache
def sentencepiece_proto(vocab_size: int) -> bytes:
    """A SentencePiece BPE model with byte fallback: unk, bos and eos are 0, 1 and 2."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()), model_writer=out, vocab_size=vocab_size,
        model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2, num_threads=1,
    )  # fmt: skip
    return out.getvalue()


def _lines() -> list[str]:
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics)[:12])
    return [line for line in text.splitlines() if line.strip() and line.isascii()]
