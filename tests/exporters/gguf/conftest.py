"""Exports to GGUF as the command line makes them, and the judge's answer beside our decoder's."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_run import run_export
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.exporters.gguf import EXPORTER
from bcquant.exporters.gguf.options import GgufOptions
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., ExportPlan]
# Rows of 64 and 128: blocks of 32 fit, and groups of 64 too.
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def export() -> Export:
    """Plan, validate and write `source` as `out`; the validated plan."""

    def run(source: Path, out: Path, **options: Any) -> ExportPlan:
        return run_export(EXPORTER, source, out, GgufOptions(**options))

    return run


@pytest.fixture(scope="session")
def make_quantized() -> Callable[..., Path]:
    """A tiny checkpoint whose blocks are rounded to nearest and stored as GPTQ v1 or otherwise."""

    def make(
        folder: Path, fmt: QuantFormat, target: str = "v1", family: str = "llama", **over: Any
    ) -> Path:
        make_checkpoint(family, folder, dtype="F16", **{**SHAPE, **over})
        return quantize_folder(folder, target, fmt)

    return make


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@pytest.fixture
def byte_level_source() -> Callable[[Path, str], Path]:
    """A float model with a byte-level tokenizer trained under the rules of this name."""

    def make(folder: Path, rules: str) -> Path:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
        from tokenizers import pre_tokenizers as pre

        def split(expression: str) -> list[Any]:
            cut = pre.Split(Regex(expression), "isolated")
            return [cut, pre.ByteLevel(add_prefix_space=False, use_regex=False)]

        gpt2 = pre.ByteLevel(add_prefix_space=False)
        steps: dict[str, list[Any]] = {
            "gpt2": [gpt2],
            "smollm": [pre.Digits(individual_digits=True), gpt2],
            **dict.fromkeys(("llama3", "dbrx"), split(LLAMA3_SPLIT)),
            **dict.fromkeys(("qwen2", "stablelm2"), split(QWEN2_SPLIT)),
        }
        source = make_checkpoint("llama", folder, dtype="F16", vocab_size=700)
        tokenizer = Tokenizer(models.BPE(ignore_merges=rules == "llama3"))
        tokenizer.pre_tokenizer = pre.Sequence(steps[rules])
        tokenizer.decoder = decoders.ByteLevel()
        if rules == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        trainer = trainers.BpeTrainer(
            vocab_size=690,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=sorted(pre.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_sentences(), trainer)
        tokenizer.save(str(source / "tokenizer.json"))
        return source

    return make


@pytest.fixture
def sentencepiece_source() -> Callable[..., Path]:
    """A float Baichuan with a SentencePiece model trained with these settings."""

    def make(folder: Path, add_bos_token: bool = False, **settings: Any) -> Path:
        import sentencepiece

        source = make_checkpoint("baichuan", folder, dtype="F16", vocab_size=420)
        out = io.BytesIO()
        defaults: dict[str, Any] = {
            "vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "split_digits": True,
            "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
            "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1,
        }  # fmt: skip
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sentences()), model_writer=out, **{**defaults, **settings}
        )
        (source / "tokenizer.model").write_bytes(out.getvalue())
        config = source / "tokenizer_config.json"
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "add_bos_token": add_bos_token})
        )
        return source

    return make


def _sentences() -> list[str]:
    lines = [f"the line {i} of The text's end, it is\n  here; {i * 7} then" for i in range(200)]
    extra = ["今天天气很好，我们一起去公园散步吧。" * 3, "\n\n\tif x == 1:  # don't we'll"]
    return [*lines, *extra] * 2
