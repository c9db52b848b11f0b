"""Tiny tokenizers, trained once a run on text that ships with Python and Chinese sentences."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

CHINESE = (
    "今天天气很好，我们一起去公园散步吧。",
    "人工智能正在改变世界，大语言模型可以回答问题。",
    "北京是中国的首都，上海是最大的城市之一。",
    "他说：“量化之后的模型更小，也更快。”",
)
# What a tokenizer meets: spaces of every kind, digits, marks, scripts, emoji, control characters.
TEXTS = (
    "Hello world",
    " leading space",
    "  two leading, two trailing  ",
    "line\n\n\n1. list 12345 items\t\tand tabs\r\n",
    "CamelCase don't WON'T I'll 3.14e-10 == != --flag",
    *CHINESE,
    "混合 mixed 文本 with 2024年3月1日 dates",
    "emoji 🎉👨\u200d👩\u200d👧 and flags 🇨🇳, combining e\u0301 and ไทย",
    "a▁b literal mark, ⁇ and \u00a0 no-break",
    "\x00\x07 control",
    "",
    " ",
    "x" * 300,
)


def corpus() -> list[str]:
    from pydoc_data.topics import topics

    lines = [line for key in sorted(topics)[:30] for line in topics[key].splitlines() if line]
    return lines + list(CHINESE) * 20


@pytest.fixture(scope="session")
def texts() -> list[str]:
    from pydoc_data.topics import topics

    return [*TEXTS, *(topics[key][:1500] for key in sorted(topics)[30:50])]


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer.json like Llama 3's: a bos by post-processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|begin|>", "<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "chat_template": "{% for m in messages %}"
        "<|turn|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return folder


def train_sentencepiece(**settings: object) -> bytes:
    """A BPE model in the manner of Baichuan: bytes, digits split, user-defined pieces."""
    import sentencepiece

    out = io.BytesIO()
    defaults: dict[str, object] = {
        "vocab_size": 900,
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.9999,
        "user_defined_symbols": ["<reserved_1>", "，", "。", "\n\n", "▁▁▁▁", "=="],
        "minloglevel": 2,
        "num_threads": 1,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, **{**defaults, **settings}
    )
    return out.getvalue()


@pytest.fixture(scope="session")
def train() -> Callable[..., bytes]:
    return train_sentencepiece


@pytest.fixture(scope="session")
def sentencepiece_proto() -> bytes:
    return train_sentencepiece()


@pytest.fixture
def baichuan_folder(tmp_path: Path, sentencepiece_proto: bytes) -> Path:
    """A folder with only tokenizer.model, custom code and Baichuan's settings."""
    folder = tmp_path / "baichuan"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_proto)
    settings = {
        "tokenizer_class": "BaichuanTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": {"content": "<s>", "__type": "AddedToken"},
        "eos_token": {"content": "</s>", "__type": "AddedToken"},
        "unk_token": {"content": "<unk>", "__type": "AddedToken"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "pad_token_id": 0}))
    return folder


@pytest.fixture
def llama_folder(tmp_path: Path, sentencepiece_proto: bytes) -> Path:
    """A folder with only tokenizer.model and a tokenizer class that adds a bos by default."""
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_proto)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder
