from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from factory import FAMILIES, make_tiny, make_tiny_gguf
from tiny_quantized import quantized_folder

from bcquant.errors import CheckpointError, ConfigError, ShapeError
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD
from bcquant.models.decoder import Decoder
from bcquant.models.rotated_source import rotate
from bcquant.models.source import ModelSource, open_model
from bcquant.spec.quant_format import QuantFormat

V, OUT, DOWN = (f"model.layers.1.{m}_proj" for m in ("self_attn.v", "self_attn.o", "mlp.down"))


def logits(source: ModelSource) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, source.config.vocab_size, (2, 24)))
    return Decoder.load(source)(ids)


@pytest.mark.parametrize("rotation", ["heads", "residual"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same(family: str, rotation: str, tmp_path: Path) -> None:
    with open_model(make_tiny(family, tmp_path)) as source:
        wanted = logits(source)
        rotated = rotate(source, rotation)
        assert np.abs(rotated.weight(f"{V}.weight") - source.weight(f"{V}.weight")).max() > 0.1
        error = (logits(rotated) - wanted).norm() / wanted.norm()
    # Some float32 roundings (6e-8) more in each of two layers; measured 6e-7 to 1.6e-6. A wrong
    # sign, order of heads or norm gives more than 0.1.
    assert error < 1e-5


@pytest.mark.parametrize("rotation", ["heads", "residual"])
def test_gguf_sources_too(rotation: str, tmp_path: Path) -> None:
    with open_model(make_tiny_gguf("smollm2", tmp_path / "m.gguf")) as source:
        wanted = logits(source)
        error = (logits(rotate(source, rotation)) - wanted).norm() / wanted.norm()
    assert error < 1e-5  # as above


def test_residual_unties_the_head_and_empties_the_norms(tmp_path: Path) -> None:
    with open_model(make_tiny("smollm2", tmp_path)) as source:
        assert not source.has(HEAD)
        rotated = rotate(source, "residual")
        assert rotated.names() == [*source.names(), HEAD]
        assert rotated.shape(HEAD) == source.shape(EMBEDDING)
        assert not rotated.config.tie_embeddings
        assert rotated.reader.config["tie_word_embeddings"] is False
        assert source.reader.config["tie_word_embeddings"] is True
        for norm in (FINAL_NORM, "model.layers.0.input_layernorm.weight"):
            assert (rotated.weight(norm) == 1).all()
            assert rotated.stored_dtype(norm) == "F32"


def test_residual_folds_a_norm_head_and_says_so(tmp_path: Path) -> None:
    with open_model(make_tiny("baichuan2", tmp_path)) as source:
        rotated = rotate(source, "residual")
        assert source.config.norm_head
        assert not rotated.config.norm_head
        assert rotated.reader.config["norm_head"] is False


def test_head_norms_of_qwen3_stay_as_they_are(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    with open_model(make_tiny("qwen3", tmp_path, "F16")) as source:
        rotated = rotate(source, "residual")
        assert rotated.stored_dtype(name) == "F16"
        assert (rotated.raw(name) == source.raw(name)).all()


def test_heads_change_values_and_outputs_alone(tmp_path: Path) -> None:
    with open_model(make_tiny("llama_bias", tmp_path, "F16")) as source:
        rotated = rotate(source, "heads")
        assert rotated.config == source.config
        for name in source.names():
            is_made = ".v_proj." in name or name.endswith(".o_proj.weight")
            assert rotated.stored_dtype(name) == ("F32" if is_made else "F16")
            assert np.array_equal(rotated.weight(name), source.weight(name)) != is_made
            assert np.asarray(rotated.raw(name)).dtype == (np.float32 if is_made else np.float16)


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    with open_model(make_tiny("smollm2", tmp_path)) as source:
        rotated = rotate(source, "residual")
        for name in (EMBEDDING, HEAD, FINAL_NORM, f"{V}.weight", f"{OUT}.weight", f"{DOWN}.weight"):
            whole = rotated.weight(name)
            part = rotated.weight(name, (3, 11))
            assert whole.dtype == part.dtype == np.float32
            # Products of other shapes may be summed in another order.
            np.testing.assert_allclose(part, whole[3:11], rtol=1e-5, atol=1e-6)
        with pytest.raises(ShapeError, match="rows 5 to 999"):
            rotated.weight(f"{V}.weight", (5, 999))


def test_a_seed_decides(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path)) as source:
        first, again, other = (rotate(source, "residual", seed) for seed in (1, 1, 2))
        name = f"{V}.weight"
        assert (first.weight(name) == again.weight(name)).all()
        assert (first.weight(name) != other.weight(name)).any()


def test_none_is_the_source_itself(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path)) as source:
        assert rotate(source, "none") is source


def test_refuses_what_it_cannot_rotate(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path / "float")) as source:
        with pytest.raises(ConfigError, match="'head'; one of none, heads, residual"):
            rotate(source, "head")
        with pytest.raises(CheckpointError, match=r"no tensor 'model\.x'"):
            rotate(source, "residual").weight("model.x")
        assert rotate(source, "heads").quantized(V) is None
        assert rotate(source, "heads").format_of(V) is None
    folder = quantized_folder(tmp_path / "q", "v1", QuantFormat(4, 32))
    with open_model(folder) as source, pytest.raises(ConfigError, match="integers cannot be"):
        rotate(source, "heads")
