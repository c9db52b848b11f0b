"""Tuning and rotation inside a run: what they leave alone, what they write, what a rerun gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import make_checkpoint

from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.pipeline import quantize
from bcquant.pipeline.quantize import RunResult, quantize_model
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe
from bcquant.spec.tune_options import TuneOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama3", tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics[key] for key in sorted(topics))[:9000], encoding="utf-8")
    calib = CalibOptions(str(path), 384, 12)
    tune = TuneOptions(8, batch_tokens=96, scale_rate=5e-3, float_rate=5e-3, check_every=4)
    return Recipe(QuantFormat(2, 32), calib=calib, tune=tune)


@pytest.fixture(scope="module")
def tuned(model: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return quantize_model(model, tmp_path_factory.mktemp("tuned") / "out", recipe)


def test_tuning_moves_scales_and_norms_and_no_integer(
    model: Path, recipe: Recipe, tuned: RunResult, tmp_path: Path
) -> None:
    plain = quantize_model(model, tmp_path / "out", replace(recipe, tune=TuneOptions()))
    assert tuned.report["tuning"]["best_step"] > 0
    assert tuned.report["tuning"]["kl_after"] < tuned.report["tuning"]["kl_before"]
    assert "tuning" not in plain.report
    moved = 0
    with open_model(plain.folder) as before, open_model(tuned.folder) as after:
        for row in tuned.manifest.modules:
            old, new = before.quantized(row.module), after.quantized(row.module)
            assert old is not None and new is not None
            assert np.array_equal(old.codes_NK, new.codes_NK)
            assert np.array_equal(old.zeros_NG, new.zeros_NG)
            moved += int((old.scales_NG != new.scales_NG).sum())
        norm = "model.layers.0.input_layernorm.weight"
        assert not np.array_equal(before.weight(norm), after.weight(norm))
    assert moved > 0


def test_the_figures_are_those_of_the_tuned_model(model: Path, tuned: RunResult) -> None:
    figures = tuned.report["tuning"], tuned.manifest.whole_model
    assert figures[1]["kl_mean"] is not None
    # Random tokens: the written model is nearer to the float one than its start was by what the
    # held-out KL says, within the noise of 24 tokens.
    ids = torch.from_numpy(np.random.default_rng(2).integers(3, 90, (8, 12)))
    with open_model(model) as source, open_model(tuned.folder) as written:
        wanted = Decoder.load(source)(ids).log_softmax(-1)
        found = Decoder.load(written)(ids).log_softmax(-1)
    kl = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert kl < 2 * figures[0]["kl_before"]


def test_a_run_killed_after_tuning_ends_the_same(
    model: Path, recipe: Recipe, tuned: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quantize, "write_output", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(model, tmp_path / "out", recipe)
    with monkeypatch.context() as patch:
        patch.setattr(quantize, "tune_scales", stop)  # it is not tuned again
        again = quantize_model(model, tmp_path / "out", recipe)
    for file in ("model.safetensors", "bcquant_manifest.json", "config.json"):
        assert (again.folder / file).read_bytes() == (tuned.folder / file).read_bytes()


@pytest.mark.parametrize("rotation", ["heads", "residual"])
def test_a_rotated_run_writes_a_model_near_the_origin(
    model: Path, recipe: Recipe, rotation: str, tmp_path: Path
) -> None:
    wanted_format = replace(recipe, format=QuantFormat(8, 32), tune=TuneOptions(), rotate=rotation)
    result = quantize_model(model, tmp_path / "out", wanted_format)
    ids = torch.from_numpy(np.random.default_rng(2).integers(3, 90, (2, 24)))
    with open_model(model) as source, open_model(result.folder) as written:
        wanted, found = Decoder.load(source)(ids), Decoder.load(written)(ids)
    # 8 bits measure 0.01 of the spread; a rotation that is folded on one side only gives 1.
    assert float((found - wanted).abs().mean() / wanted.std()) < 0.03
