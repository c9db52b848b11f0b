"""Tools that are installed with the tests, on a tiny model; and our runtime's speed."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_quantized import quantize_folder

from bcquant.calib.dataset import CalibrationTokens
from bcquant.eval.sweep.inputs import Inputs
from bcquant.eval.sweep.point import Made, MakeJob, Settings, find_tool
from bcquant.eval.sweep.process import run_child
from bcquant.eval.sweep.sizes import decoder_bits, num_decoder_weights
from bcquant.eval.sweep.speed import checkpoint_speed
from bcquant.models.source import ModelSource, open_model
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions

TOKENS = CalibrationTokens(
    np.random.default_rng(0).integers(3, 300, (5, 16)), 3, 1, 1, "random", "digest"
)
PROJECTION = "model.layers.0.mlp.down_proj.weight"


def make(key: str, settings: Settings, source: ModelSource, folder: Path) -> Made:
    inputs = folder.with_name("inputs")
    inputs.mkdir(exist_ok=True)
    folder.mkdir()
    python = Path(sys.executable)

    def run(child: str, job: Settings) -> Settings:
        return run_child(python, child, job, folder, lambda done, total: None)

    shared = Inputs(source, CalibOptions(), TOKENS, inputs)
    return find_tool(key).make(MakeJob(settings, shared, folder, run, python, 1))


def test_llama_cpp_rounds_otherwise_with_an_importance_matrix(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    weights = []
    with open_model(tiny) as source:
        for has in (False, True):
            settings = {"type": "Q4_0", "imatrix": has}
            made = make("llama_cpp", settings, source, tmp_path / f"with-{has}")
            with open_model(made.model) as found:
                assert found.stored_dtype(PROJECTION) == "GGUF:Q4_0"
                assert found.stored_dtype("model.embed_tokens.weight") == "F16"
                assert decoder_bits(found) / num_decoder_weights(found) == 4.5
                weights.append(found.weight(PROJECTION))
        wanted = source.weight(PROJECTION)
    # 4 bits of normally distributed weights: about 0.1; the matrix must have been read.
    errors = [np.linalg.norm(w - wanted) / np.linalg.norm(wanted) for w in weights]
    assert max(errors) < 0.15 and not np.array_equal(*weights)


def test_a_package_of_a_checkpoint_is_timed(tiny: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    quantize_folder(model, "compressed-tensors", QuantFormat(4, 32))
    speed = partial(checkpoint_speed, model, 1)()
    assert speed.prefill_tokens_per_s > 0 and speed.decode_tokens_per_s > 0
