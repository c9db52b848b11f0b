"""One judge for all: against itself, against `bcquant eval ppl`, and from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_quantized import quantize_folder

from bcquant.errors import ConfigError
from bcquant.eval.perplexity import measure_perplexity
from bcquant.eval.sweep import judge
from bcquant.eval.sweep.judge import Judge, eval_text
from bcquant.models.source import open_model
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

TEXT = "The quick brown fox jumps over the lazy dog, and then it does so again. " * 12


def test_the_float_model_is_no_worse_than_itself(tiny: Path, tmp_path: Path) -> None:
    text = eval_text("en", TEXT, open_tokenizer(tiny), 100)
    with open_model(tiny) as source:
        found = Judge(source, "digest", tmp_path).figures(tiny, text, lambda done, total: None)
    assert found["increase_percent"] == found["kl_mean"] == 0.0
    assert found["top1_agreement"] == 1.0 and found["tokens"] == 99


@pytest.mark.parametrize("activation", ["none", "int8_token"])
def test_perplexity_is_that_of_eval(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    monkeypatch.setattr(judge, "WINDOW", 32)
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    target = "compressed-tensors" if activation == "none" else "int-quantized"
    fmt = QuantFormat(4, 32) if activation == "none" else QuantFormat(8, -1, True, activation)
    quantize_folder(model, target, fmt)
    text = eval_text("en", TEXT, open_tokenizer(tiny), 96)
    assert text.ids_ST.shape == (3, 32)
    with open_model(tiny) as source:
        found = Judge(source, "digest", tmp_path).figures(model, text, lambda done, total: None)
        plain = measure_perplexity(source, TEXT, 32, 32, 96)
    with open_model(model) as source:
        wanted = measure_perplexity(source, TEXT, 32, 32, 96)
    # The windows but the first one token of each: eval scores what the judge scores.
    assert wanted.num_tokens == found["tokens"] == 93
    # the same float32 arithmetic, summed in other pieces
    assert found["perplexity_quantized"] == pytest.approx(wanted.perplexity, rel=1e-6)
    assert found["perplexity_float"] == pytest.approx(plain.perplexity, rel=1e-6)


def test_the_reference_is_computed_once(tiny: Path, tmp_path: Path) -> None:
    text = eval_text("en", TEXT, open_tokenizer(tiny), 64)
    passes: list[int] = []

    def count(done: int, total: int) -> None:
        passes.append(done)

    with open_model(tiny) as source:
        Judge(source, "digest", tmp_path).figures(tiny, text, count)
        first = len(passes)
        Judge(source, "digest", tmp_path).figures(tiny, text, count)
    assert len(passes) - first == first // 2  # only the model that is judged


def test_a_text_without_two_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        eval_text("en", "", open_tokenizer(tiny), 64)
