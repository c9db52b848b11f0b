"""bcquant.calib.forward: final hidden states without the model in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factory import make_tiny

from bcquant.calib import forward, layer_stream
from bcquant.calib.forward import final_hidden
from bcquant.models.decoder import Decoder
from bcquant.models.norm import rms_norm
from bcquant.models.source import open_model

IDS = np.random.default_rng(0).integers(0, 96, (5, 11))


@pytest.mark.parametrize("chunk_tokens", [1, 25, 2048])
@pytest.mark.parametrize("family", ["llama3", "qwen3", "mistral", "baichuan2_13b"])
def test_final_hidden_equals_the_decoder(
    family: str, chunk_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "CHUNK_TOKENS", chunk_tokens)
    (tmp_path / "work").mkdir()
    with open_model(make_tiny(family, tmp_path / "model")) as source:
        steps: list[tuple[int, int]] = []
        hidden = final_hidden(source, IDS, tmp_path / "work", lambda *step: steps.append(step))
        model = Decoder.load(source)
    found = rms_norm(hidden.read(0, 5), model.norm, model.config.rms_norm_eps)
    hidden.discard()
    # The same arithmetic in other batch shapes.
    torch.testing.assert_close(
        found, model.final_hidden(torch.from_numpy(IDS)).clone(), atol=3e-5, rtol=3e-5
    )
    assert steps == [(1, 2), (2, 2)]


def test_int8_linear_rounds_its_input_per_token() -> None:
    x, weight = torch.randn(2, 3, 16), torch.randn(4, 16)
    wanted = layer_stream.fake_int8_token(x) @ weight.T
    torch.testing.assert_close(forward._int8_linear(x, weight, None, "m"), wanted)
