"""Strided perplexity against a loop over a whole resident model in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_checkpoint import make_checkpoint

from bcquant.cli import main
from bcquant.errors import ConfigError
from bcquant.eval.perplexity import evaluation_text, measure_perplexity
from bcquant.models.decoder import Decoder
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.tokenizer import Tokenizer, open_tokenizer

TEXT = "The quick brown fox jumps over 13 lazy dogs; 今天天气很好。 " * 2
# Both sides add the same float32 products in another order; the worst seen is 2e-6.
TOLERANCE = 2e-5


def token_ids(source: ModelSource, text: str) -> npt.NDArray[np.int64]:
    tokenizer = open_tokenizer(source.path)
    return np.asarray(tokenizer.encode(text, add_special=False, parse_special=False), np.int64)


def reference(
    source: ModelSource, ids: npt.NDArray[np.int64], seq_len: int, stride: int
) -> tuple[float, int]:
    """Mean nll and scored tokens: a token counts in the first window that holds it."""
    model = Decoder.load(source)
    nll: dict[int, float] = {}
    for begin in range(0, len(ids), stride):
        window = torch.from_numpy(ids[begin : begin + seq_len])
        with torch.inference_mode():
            logits = model(window[None])[0]
        log_probs = logits.double().log_softmax(-1)
        for i in range(1, len(window)):
            nll.setdefault(begin + i, -float(log_probs[i - 1, window[i]]))
        if begin + seq_len >= len(ids):
            break
    return sum(nll.values()) / len(nll), len(nll)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("ppl") / "model")


@pytest.mark.parametrize("stride", range(1, 13))
def test_every_stride_equals_the_loop(stride: int, llama: Path) -> None:
    with open_model(llama) as source:
        ids = token_ids(source, TEXT)
        result = measure_perplexity(source, TEXT, seq_len=12, stride=stride)
        nll, scored = reference(source, ids, 12, stride)
    assert result.num_tokens == scored
    assert scored == (len(ids) - 1 if stride < 12 else len(ids) - math.ceil(len(ids) / 12))
    assert result.nll == pytest.approx(nll, rel=TOLERANCE)
    assert result.perplexity == pytest.approx(math.exp(nll), rel=20 * TOLERANCE)  # d exp(x) = x dx


@pytest.mark.parametrize("num_tokens", range(2, 30))
def test_last_window_of_any_length_equals_the_loop(num_tokens: int, llama: Path) -> None:
    with open_model(llama) as source:
        ids = token_ids(source, TEXT)[:num_tokens]
        for stride in (3, 8):
            result = measure_perplexity(source, TEXT, 8, stride, max_tokens=num_tokens)
            nll, scored = reference(source, ids, 8, stride)
            assert result.num_tokens == scored
            assert result.nll == pytest.approx(nll, rel=TOLERANCE)


@pytest.mark.parametrize(
    "family", ["llama3", "smollm2", "qwen2", "qwen3", "mistral", "baichuan", "baichuan2_13b"]
)
def test_every_family_equals_the_loop(family: str, tmp_path: Path) -> None:
    with open_model(make_checkpoint(family, tmp_path / "model")) as source:
        result = measure_perplexity(source, TEXT, seq_len=16, stride=5)
        nll, scored = reference(source, token_ids(source, TEXT), 16, 5)
    assert (result.num_tokens, result.nll) == (scored, pytest.approx(nll, rel=TOLERANCE))


@pytest.mark.parametrize(
    ("flags"),
    [["gptq", "--group-size", "16", "--lm-head"], ["gptq", "--group-size", "32"], ["int8"]],
)
def test_quantized_checkpoint_equals_its_dequantized_weights(
    flags: list[str], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = [flags[0], str(llama), *flags[1:], "--calib-tokens", "64", "--seq-len", "8"]
    assert main([*argv, "-o", str(out), "--json"]) == 0
    with open_model(out) as source, open_model(llama) as original:
        assert source.quantized("model.layers.0.mlp.up_proj") is not None
        result = measure_perplexity(source, TEXT, seq_len=16, stride=5)
        nll, _ = reference(source, token_ids(source, TEXT), 16, 5)
        float_nll, _ = reference(original, token_ids(original, TEXT), 16, 5)
    assert result.nll == pytest.approx(nll, rel=TOLERANCE)
    assert result.nll != pytest.approx(float_nll, rel=TOLERANCE)


@pytest.mark.parametrize("flags", [[], ["--lm-head"]])
def test_w8a8_figures_of_the_run_are_those_of_the_written_checkpoint(
    flags: list[str],
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run and the evaluation must round the same activations to int8."""
    import json

    from bcquant.calib.dataset import builtin_text

    out = tmp_path / "out"
    argv = ["int8", str(llama), "--scheme", "w8a8", "--calib-tokens", "96", "--seq-len", "12"]
    assert main([*argv, *flags, "-o", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["whole_model"]
    with open_model(out) as source:
        ids = token_ids(source, builtin_text("evaluation")[: 1 << 22])
        # The run's one report sequence: see `calib.dataset`.
        chosen = int(np.random.default_rng(0).permutation(len(ids) // 12)[0])
        window = [int(i) for i in ids[12 * chosen : 12 * (chosen + 1)]]
        monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: window)
        result = measure_perplexity(source, "", seq_len=12)
    assert result.num_tokens == figures["tokens"]
    assert result.nll == pytest.approx(math.log(figures["perplexity_quantized"]), rel=TOLERANCE)


@pytest.mark.parametrize(
    ("text", "options", "named"),
    [
        ("", {}, "the text has 0 tokens"),
        ("a", {}, "the text has 1 tokens"),
        (TEXT, {"max_tokens": 1}, "--max-tokens is 1; at least 2"),
        (TEXT, {"max_tokens": 0}, "--max-tokens is 0; at least 2"),
        (TEXT, {"max_tokens": -5}, "--max-tokens is -5; at least 2"),
        (TEXT, {"seq_len": 1}, "--seq-len is 1; at least 2 is needed"),
        (TEXT, {"seq_len": 8, "stride": 9}, r"--stride is 9; 1 to --seq-len \(8\)"),
        (TEXT, {"seq_len": 8, "stride": 0}, "--stride is 0"),
    ],
)
def test_what_cannot_be_measured_is_a_config_error(
    text: str, options: dict[str, int], named: str, llama: Path
) -> None:
    with open_model(llama) as source, pytest.raises(ConfigError, match=named):
        measure_perplexity(source, text, **options)


def test_text_shorter_than_a_window_is_one_window(llama: Path) -> None:
    with open_model(llama) as source:
        result = measure_perplexity(source, TEXT, seq_len=100_000)
        nll, scored = reference(source, token_ids(source, TEXT), 100_000, 100_000)
    assert (result.num_tokens, result.nll) == (scored, pytest.approx(nll, rel=TOLERANCE))


def test_builtin_text_is_not_that_of_the_calibration() -> None:
    from bcquant.calib.dataset import builtin_text

    assert evaluation_text("builtin") == builtin_text("evaluation")
    assert evaluation_text("builtin")[:2000] not in builtin_text("calibration")


def test_nothing_is_left_in_the_temporary_folder(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_model(llama) as source:
        measure_perplexity(source, TEXT, seq_len=16)
    assert list(tmp_path.iterdir()) == []
