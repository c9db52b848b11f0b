"""`bcquant demo` from end to end on a tiny model that stands in for the fetched one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factory import make_tiny

from bcquant.cli import main
from bcquant.io import demo_model
from bcquant.spec.manifest import MANIFEST_NAME

FEW = ["--calib-tokens", "512", "--eval-tokens", "300"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random two-layer LLaMA over bytes; the working folder is its parent."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = make_tiny(
        "llama", tmp_path / "tiny", "F16",
        vocab_size=256, intermediate_size=128, max_position_embeddings=512,
    )  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(demo_model, "fetch_demo_model", lambda say: path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    return path


def test_demo_shows_both_models_and_leaves_a_checkpoint(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *FEW, "--prompt", "Hello"]) == 0
    out = capsys.readouterr().out
    # 300 tokens in windows that do not overlap: the first of the one window is not scored.
    assert "perplexity on 299 held-out tokens" in out
    for words in ("before, as float16", "after, 4-bit GPTQ", "change", "written: demo-output"):
        assert words in out
    assert out.count("Hello") == 2
    assert main(["inspect", "demo-output"]) == 0
    assert "GPTQ v1, 4-bit, group 64, symmetric" in capsys.readouterr().out


def test_second_demo_replaces_the_first(model: Path, tmp_path: Path) -> None:
    assert main(["demo", *FEW]) == 0
    stamp = (tmp_path / "demo-output" / MANIFEST_NAME).stat().st_mtime_ns
    assert main(["demo", *FEW]) == 0
    assert (tmp_path / "demo-output" / MANIFEST_NAME).stat().st_mtime_ns > stamp


def test_folder_of_somebody_else_is_refused_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output" / "precious.txt").write_text("not ours")
    assert main(["demo", *FEW]) == 2
    assert "is no earlier demo" in capsys.readouterr().err
    assert (tmp_path / "demo-output" / "precious.txt").read_text() == "not ours"
