"""What tools start from, and how large a model's decoder is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import make_gguf_checkpoint
from tiny_quantized import quantized_folder

from bcquant.calib.dataset import CalibrationTokens
from bcquant.eval.sweep.inputs import DECODER, Inputs, decoder_modules
from bcquant.eval.sweep.sizes import decoder_bits, num_decoder_weights
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import CalibOptions

TOKENS = CalibrationTokens(
    np.random.default_rng(0).integers(3, 300, (5, 16)), 3, 1, 1, "random", "digest"
)


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> Iterator[Inputs]:
    folder = tmp_path / "inputs"
    folder.mkdir()
    with open_model(tiny) as source:
        yield Inputs(source, CalibOptions(), TOKENS, folder)


def test_float_folder_is_the_model_in_float16(inputs: Inputs) -> None:
    with open_model(inputs.float_folder()) as plain:
        for name in inputs.source.names():
            wanted = inputs.source.weight(name).astype(np.float16)
            assert np.array_equal(plain.weight(name), wanted)
    stored = load_file(inputs.float_folder() / DECODER)
    assert set(stored) == {f"{module}.weight" for module in decoder_modules(inputs.source)}


def test_a_decoder_alone_becomes_a_whole_model(inputs: Inputs, tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    folder.mkdir()
    doubled = {
        name: 2.0 * values.astype(np.float32)
        for name, values in load_file(inputs.float_folder() / DECODER).items()
    }
    save_file(doubled, folder / DECODER)
    inputs.complete(folder)
    with open_model(folder) as model, open_model(inputs.float_folder()) as plain:
        for name in plain.names():
            factor = 2.0 if name in doubled else 1.0
            assert np.array_equal(model.weight(name), factor * plain.weight(name))


def test_calibration_leaves_the_report_out(inputs: Inputs) -> None:
    assert np.array_equal(np.load(inputs.calibration()), TOKENS.ids_ST[:4])


def test_importance_of_the_first_stage_is_that_of_the_normed_embedding(inputs: Inputs) -> None:
    source = inputs.source
    rows = source.weight("model.embed_tokens.weight")[TOKENS.ids_ST[:4]].astype(np.float64)
    norm = source.weight("model.layers.0.input_layernorm.weight")
    scale = np.sqrt((rows**2).mean(-1, keepdims=True) + source.config.rms_norm_eps)
    wanted = ((rows / scale * norm) ** 2).mean((0, 1))
    with np.load(inputs.importance()) as found:
        assert len(found.files) == len(decoder_modules(source))
        # float32 arithmetic of a mean over 64 tokens
        np.testing.assert_allclose(found["blk.0.attn_q.weight"], wanted, rtol=1e-5)
        assert found["blk.1.ffn_down.weight"].shape == (source.config.intermediate_size,)


def test_gguf_holds_the_same_weights(inputs: Inputs) -> None:
    with open_model(inputs.gguf()) as found, open_model(inputs.float_folder()) as plain:
        for name in plain.names():
            assert np.array_equal(found.weight(name), plain.weight(name)), name


@pytest.mark.parametrize(
    ("fmt", "wanted"),
    [
        (QuantFormat(4, 32), 4 + 16 / 32),
        (QuantFormat(4, 32, False), 4 + 20 / 32),
        (QuantFormat(3, 64), 3 + 16 / 64),
    ],
)
def test_bits_count_scales_and_the_zeros_of_asymmetric_grids(
    fmt: QuantFormat, wanted: float, tmp_path: Path
) -> None:
    path = quantized_folder(
        tmp_path / "m", "compressed-tensors", fmt, hidden_size=64, intermediate_size=128
    )
    with open_model(path) as source:
        assert decoder_bits(source) / num_decoder_weights(source) == pytest.approx(wanted)


def test_bits_of_a_float_gguf_are_those_of_its_type(tmp_path: Path) -> None:
    path = make_gguf_checkpoint("llama", tmp_path / "m.gguf")
    with open_model(path) as source:
        assert decoder_bits(source) / num_decoder_weights(source) == 32
