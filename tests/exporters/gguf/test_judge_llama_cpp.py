"""llama.cpp opens what we write and computes what our float32 decoder computes.

Its own rounding sets the bounds: with F16 and BF16 weights it rounds activations to that type, with
block types to 8 bits in blocks of 32. Errors are norms over all logits of a text, relative to the
logits' own norm; a wrong tensor, or rows in a wrong order, gives about 1.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judges.harness import our_decoder
from judges.llama_judge import F32Array, LlamaJudge
from tiny_checkpoint import make_checkpoint
from tiny_quantized import NEAREST

from bcquant.exporters.gguf.sentencepiece import rules_of
from bcquant.exporters.gguf.tokens import build_vocabulary
from bcquant.models.source import open_model
from bcquant.runtime.hard_texts import HARD_TEXTS
from bcquant.runtime.sentencepiece_json import convert_sentencepiece
from bcquant.runtime.token_backends import AddedToken, SentencePieceBackend
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge

Export = Callable[..., ExportPlan]
Make = Callable[..., Path]
TEXT = "A statement comprises expressions; if x is true, " * 2
NUM_TOKENS = 40


def token_ids(source: Path) -> list[int]:
    return open_tokenizer(source).encode(TEXT)[:NUM_TOKENS]


def our_logits(source: Path, ids: list[int]) -> F32Array:
    logits: F32Array = our_decoder(source)(torch.tensor([ids]))[0].numpy()
    return logits


def relative_error(got: F32Array, wanted: F32Array) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def judged(source: Path, path: Path) -> F32Array:
    """llama.cpp's logits of the text, its ids checked, shape (T, vocab)."""
    ids = token_ids(source)
    with LlamaJudge(path) as judge:
        assert judge.encode(TEXT)[:NUM_TOKENS] == ids
        return judge.logits(ids)


def error_of(source: Path, path: Path) -> float:
    return relative_error(judged(source, path), our_logits(source, token_ids(source)))


def assert_equal_but_for_rounding(source: Path, path: Path, block: int) -> None:
    """As our decoder with llama.cpp's own rounding; see `rounded_logits`."""
    got, wanted = judged(source, path), rounded_logits(source, block)
    errors = np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    # Then only the order of float32 sums differs, measured 1e-7 to 3e-7. An activation within that
    # of a half step may round to the other side; this and all positions after it then differ by
    # 0.005 to 0.02 more. So early positions show the weights, the others that nothing else is off.
    assert np.median(errors[:8]) < 2e-6
    assert errors.max() < 0.06


def rounded_logits(source: Path, block: int) -> F32Array:
    """Our decoder with llama.cpp's rounding: activations of every Linear to 8 bits in blocks.

    Blocks of 32 have a float16 scale (its Q8_0), blocks of 256 a float32 one (its Q8_K). The head
    is F16, so its input is rounded to that.
    """
    decoder = our_decoder(source)

    def linear(
        x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        assert weight is not None
        blocks = x.reshape(*x.shape[:-1], -1, block)
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        steps = torch.nan_to_num(blocks / scales).round()
        scales = scales.half().float() if block == 32 else scales
        return F.linear((steps * scales).reshape(x.shape), weight, bias)

    decoder.linear = linear
    hidden = decoder.final_hidden(torch.tensor([token_ids(source)]))
    if not decoder.config.norm_head:  # a folded one is float32
        hidden = hidden.half().float()
    logits: F32Array = F.linear(hidden, decoder.head)[0].numpy()
    return logits


# family, keys of config.json
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama3", {}),
    ("llama_bias", {}),
    ("llama_linear", {}),
    ("smollm2", {}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {"sliding_window": None}),
    ("baichuan", {}),
    ("baichuan2", {}),
    ("baichuan13b", {"num_hidden_layers": 40}),
    ("baichuan2_13b", {"num_hidden_layers": 40}),
]


@pytest.mark.parametrize(("family", "over"), MODELS, ids=[family for family, _ in MODELS])
def test_float_models_agree(
    family: str, over: dict[str, Any], tmp_path: Path, export: Export
) -> None:
    source = make_checkpoint(family, tmp_path / "m", **over)
    export(source, tmp_path / "m.gguf")
    ids = token_ids(source)
    wanted = our_logits(source, ids)
    with LlamaJudge(tmp_path / "m.gguf") as judge:
        # float32 on both sides, sums in another order: measured up to 1.0e-6 with 2 layers, 7e-6
        # with 40.
        bound = 2e-5 if over.get("num_hidden_layers") else 4e-6
        assert relative_error(judge.logits(ids), wanted) < bound
        tokens = judge.greedy(ids, 16)
        continued = our_logits(source, [*ids, *tokens])[len(ids) - 1 : -1]
    assert tokens == continued.argmax(-1).tolist()


def test_a_sliding_window_agrees_within_its_size(tmp_path: Path, export: Export) -> None:
    source = make_checkpoint("mistral", tmp_path / "m", sliding_window=NUM_TOKENS)
    export(source, tmp_path / "m.gguf", context=NUM_TOKENS)
    assert error_of(source, tmp_path / "m.gguf") < 4e-6  # as above


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    # One rounding of every activation to 11 or 8 bits: measured 1.1e-3 and 8.8e-3.
    [("F16", 2e-4, 2.5e-3), ("BF16", 2e-3, 2e-2)],
)
def test_two_byte_weights_agree_to_llama_cpps_rounding(
    dtype: str, low: float, high: float, tmp_path: Path, export: Export
) -> None:
    source = make_checkpoint("llama3", tmp_path / "m", dtype=dtype)
    export(source, tmp_path / "m.gguf")
    assert low < error_of(source, tmp_path / "m.gguf") < high


@pytest.mark.parametrize(
    ("fmt", "target", "family"),
    [
        (QuantFormat(4, 32), "v1", "llama"),
        (QuantFormat(4, 64), "compressed-tensors", "qwen2"),
        (QuantFormat(4, 32, False), "v1", "qwen3"),
        (QuantFormat(4, 64, False), "v1", "llama_bias"),
        (QuantFormat(3, 32, False), "v1", "baichuan"),
        (QuantFormat(2, 64), "v1", "llama3"),
        (QuantFormat(8, -1), "compressed-tensors", "baichuan2"),
        (QuantFormat(8, -1, True, "int8_token"), "int-quantized", "smollm2"),
    ],
)
def test_quantized_models_agree_but_for_llama_cpps_rounding(
    fmt: QuantFormat,
    target: str,
    family: str,
    tmp_path: Path,
    export: Export,
    make_quantized: Make,
) -> None:
    source = make_quantized(tmp_path / "m", fmt, target, family)
    plan = export(source, tmp_path / "m.gguf")
    assert not plan.lossy
    assert_equal_but_for_rounding(source, tmp_path / "m.gguf", 32)


def test_q4_k_agrees(tmp_path: Path, export: Export, make_quantized: Make) -> None:
    over = {"hidden_size": 256, "intermediate_size": 256}
    source = make_quantized(tmp_path / "m", QuantFormat(4, -1, False), **over)
    plan = export(source, tmp_path / "m.gguf")
    assert {t.stored_as for t in plan.tensors if t.name.endswith("proj")} == {"Q4_K"}
    assert_equal_but_for_rounding(source, tmp_path / "m.gguf", 256)


def test_float32_weights_of_unfit_groups_agree(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 16), family="qwen2")
    export(source, tmp_path / "m.gguf", unfit_as="f32")
    # The head is F16 still, so one rounding to 11 bits remains: measured 2e-4.
    assert error_of(source, tmp_path / "m.gguf") < 1e-3


def fuzz_texts(special: list[str]) -> list[str]:
    chooser = random.Random(0)
    parts = [
        *"ab,，。=\n\t é世🎉12.ХĀ",
        "the ",
        " The",
        "  ",
        "   ",
        "\r\n",
        "\u00a0",
        "'ll",
        "WON'T",
    ]
    parts += special
    return ["".join(chooser.choices(parts, k=chooser.randint(1, 30))) for _ in range(400)]


def assert_same_ids(source: Path, path: Path, special: list[str], is_nfc: bool = False) -> None:
    """Equal on every text; with NFC, which llama.cpp lacks, other ids where it changes the text."""
    tokenizer = open_tokenizer(source)
    with LlamaJudge(path, vocab_only=True) as judge:
        for text in [*HARD_TEXTS, *fuzz_texts(special)]:
            is_same = not is_nfc or unicodedata.is_normalized("NFC", text)
            for parse_special in (True, False):
                wanted = tokenizer.encode(text, parse_special=parse_special)
                found = judge.encode(text, parse_special=parse_special)
                assert (found == wanted) == is_same, text


RULE_NAMES = ["gpt2", "smollm", "llama3", "dbrx", "qwen2", "stablelm2"]


@pytest.mark.parametrize("rules", RULE_NAMES)
def test_ids_of_byte_level_rules_agree(
    rules: str, tmp_path: Path, export: Export, byte_level_source: Callable[[Path, str], Path]
) -> None:
    source = byte_level_source(tmp_path / "m", rules)
    export(source, tmp_path / "m.gguf")
    assert_same_ids(source, tmp_path / "m.gguf", ["<pad>", "<s>", "</s>"], rules == "qwen2")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["，", "==", "=", "。"]},
        {"user_defined_symbols": ["，", "<x>", "\n\n"], "add_dummy_prefix": False},
    ],
)
def test_ids_of_sentencepiece_agree(
    settings: dict[str, Any],
    tmp_path: Path,
    export: Export,
    sentencepiece_source: Callable[..., Path],
) -> None:
    source = sentencepiece_source(tmp_path / "m", **settings)
    export(source, tmp_path / "m.gguf")
    assert_same_ids(source, tmp_path / "m.gguf", ["<s>", "</s>", "<x>", "\n\n"])


@pytest.mark.parametrize("as_json", [False, True])
def test_ids_of_added_tokens_agree(
    as_json: bool, tmp_path: Path, export: Export, sentencepiece_source: Callable[..., Path]
) -> None:
    """Beside a tokenizer.model, and in the tokenizer.json that transformers makes of one."""
    source = sentencepiece_source(tmp_path / "m")
    backend = open_tokenizer(source).backend
    assert isinstance(backend, SentencePieceBackend)
    size = backend.vocab_size
    added = {size: AddedToken("<turn>", True), size + 1: AddedToken("<tool>", False)}
    if as_json:
        converted = convert_sentencepiece(
            SentencePieceBackend(backend.proto, "test", added), "test"
        )
        converted.save(str(source / "tokenizer.json"))
    else:
        decoder = {
            str(i): {"content": token.text, "special": token.is_special}
            for i, token in added.items()
        }
        config = source / "tokenizer_config.json"
        settings = json.loads(config.read_text())
        config.write_text(json.dumps({**settings, "added_tokens_decoder": decoder}))
    plan = export(source, tmp_path / "m.gguf")
    notes = [note for note in plan.notes if "'<tool>' among them, become control" in note]
    assert len(notes) == (not as_json)
    assert_same_ids(source, tmp_path / "m.gguf", ["<turn>", "<tool>", "</s>"])


def test_our_rules_are_llama_cpps_own(
    tmp_path: Path, export: Export, sentencepiece_source: Callable[..., Path]
) -> None:
    """Where it differs from SentencePiece, too: user-defined tokens and a space prefix."""
    special = ["<x>", "    ", "▁", "<s>", "<unk>"]
    source = sentencepiece_source(tmp_path / "m", user_defined_symbols=["，", "<x>", "▁▁▁▁"])
    plan = export(source, tmp_path / "m.gguf", allow_other_ids=True)
    assert "a space after 2 tokens" in plan.notes[0]
    with open_model(source) as opened:
        rules = rules_of(build_vocabulary(opened).metadata)
    differs = 0
    with LlamaJudge(tmp_path / "m.gguf", vocab_only=True) as judge:
        tokenizer = open_tokenizer(source)
        for text in [*HARD_TEXTS, *fuzz_texts(special)]:
            for parse_special in (True, False):
                ids = judge.encode(text, add_special=False, parse_special=parse_special)
                assert rules.encode(text, parse_special) == ids, text
                differs += ids != tokenizer.encode(text, False, parse_special)
    assert differs, "llama.cpp does as SentencePiece does now: the note can go"


def test_a_begin_token_is_added_by_both(
    tmp_path: Path, export: Export, sentencepiece_source: Callable[..., Path]
) -> None:
    source = sentencepiece_source(tmp_path / "m", add_bos_token=True)
    export(source, tmp_path / "m.gguf")
    with LlamaJudge(tmp_path / "m.gguf", vocab_only=True) as judge:
        for text in HARD_TEXTS:
            ids = judge.encode(text)
            assert ids == open_tokenizer(source).encode(text) and ids[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fmt", "kind"), [(QuantFormat(4, 64), "Q4_0"), (QuantFormat(4, 64, False), "Q5_0")]
)
def test_a_trained_model_agrees(
    fmt: QuantFormat, kind: str, demo_model: Path, tmp_path: Path, export: Export
) -> None:
    from dataclasses import replace

    from bcquant.pipeline.quantize import quantize_model

    source = quantize_model(demo_model, tmp_path / "q", replace(NEAREST, format=fmt)).folder
    plan = export(source, tmp_path / "m.gguf")
    assert not plan.lossy and kind in {tensor.stored_as for tensor in plan.tensors}
    text = "The history of computing is longer than most people think: in 1837 a machine. " * 20
    ids = open_tokenizer(source).encode(text)[:200]
    with LlamaJudge(tmp_path / "m.gguf") as judge:
        assert judge.encode(text)[:200] == ids
        got = torch.from_numpy(judge.logits(ids))
    wanted = torch.from_numpy(our_logits(source, ids))
    p, q = (torch.log_softmax(x.double(), -1) for x in (wanted, got))
    divergence = (p.exp() * (p - q)).sum(-1)
    # llama.cpp's 8-bit activations alone: measured mean 7e-4 to 8e-4, largest 0.0105, top 99 %.
    assert divergence.mean() < 2e-3
    assert divergence.max() < 0.04
    assert (got.argmax(-1) == wanted.argmax(-1)).double().mean() > 0.97
