from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import make_tiny, make_tiny_gguf, stored_weights, tiny_config, tiny_weights

from bcquant.errors import CheckpointError, ConfigError, ShapeError
from bcquant.io.dtypes import RawTensor, bf16_to_f32
from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import write_safetensors
from bcquant.models.architecture import find_architecture
from bcquant.models.source import open_model
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.quant_configs import compressed_config, gptq_config
from bcquant.quant.repack import to_compressed, to_gptq, to_int8
from bcquant.spec.quant_format import QuantFormat

Arrays = dict[str, Any]
Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.0.self_attn.k_proj"
V = "model.layers.1.self_attn.v_proj"


def rewrite(folder: Path, change: Callable[[Arrays], None], **config_over: Any) -> Path:
    """Change the tensors (and config) of a one-file model folder in place."""
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    change(tensors)
    write_safetensors(path, tensors, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **config_over}))
    return folder


def canonical(family: str) -> Mapping[str, Any]:
    config = tiny_config(family)
    return tiny_weights(find_architecture(config).parse(config))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_weights_come_as_float32_of_what_is_stored(dtype: str, tmp_path: Path) -> None:
    with open_model(make_tiny("qwen2", tmp_path, dtype)) as source:
        assert source.stored_dtype(f"{Q}.weight") == dtype
        got = source.weight(f"{Q}.weight")
    assert got.dtype == np.float32
    # Rounding of the stored type: 2^-11 for F16, 2^-8 for BF16.
    bound = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8}[dtype]
    want = canonical("qwen2")[f"{Q}.weight"]
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound / 100)


def test_every_canonical_name_is_there_in_model_order(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path, max_shard_bytes=20_000)) as source:
        assert source.names() == list(canonical("llama"))
        assert source.has(f"{Q}.weight") and not source.has(f"{Q}.bias")
        assert source.shape("lm_head.weight") == (96, 64)
        assert source.quant is None and source.quantized(Q) is None
        assert source.arch.key == source.config.family == "llama"


@pytest.mark.parametrize("rows", [None, (0, 5), (7, 40), (64, 64)])
def test_rows_of_w_pack_are_split_and_sliced(rows: tuple[int, int] | None, tmp_path: Path) -> None:
    want = canonical("baichuan")
    part = slice(*rows) if rows else slice(None)
    with open_model(make_tiny("baichuan", tmp_path)) as source:
        for module in (Q, K, V):
            np.testing.assert_array_equal(
                source.weight(f"{module}.weight", rows), want[f"{module}.weight"][part]
            )
            np.testing.assert_array_equal(
                source.raw(f"{module}.weight", rows), want[f"{module}.weight"][part]
            )


@pytest.mark.parametrize("rows", [None, (0, 16), (3, 29), (17, 18), (5, 5)])
def test_rows_of_a_permuted_gguf_are_canonical(
    rows: tuple[int, int] | None, tmp_path: Path
) -> None:
    want = canonical("llama_bias")
    part = slice(*rows) if rows else slice(None)
    with open_model(make_tiny_gguf("llama_bias", tmp_path / "m.gguf")) as source:
        for name in (f"{Q}.weight", f"{Q}.bias", f"{V}.weight"):
            if rows and rows[1] > want[name].shape[0]:
                continue
            np.testing.assert_array_equal(source.weight(name, rows), want[name][part])
            np.testing.assert_array_equal(source.raw(name, rows), want[name][part])


def test_raw_keeps_the_stored_bits(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path, "BF16")) as source:
        raw = source.raw("model.norm.weight")
        assert isinstance(raw, RawTensor) and raw.dtype == "BF16"
        np.testing.assert_array_equal(bf16_to_f32(raw.data), source.weight("model.norm.weight"))
    with open_model(make_tiny("llama", tmp_path / "half", "F16")) as source:
        assert source.raw("model.norm.weight").dtype == np.float16


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_norm_head_is_folded_into_unit_rows(dtype: str, tmp_path: Path) -> None:
    with open_model(make_tiny("baichuan2", tmp_path, dtype)) as source:
        head = source.weight("lm_head.weight")
        part = source.weight("lm_head.weight", (10, 20))
        raw = source.raw("lm_head.weight")
    np.testing.assert_allclose(np.linalg.norm(head, axis=1), 1, rtol=1e-6)  # float32 rounding
    np.testing.assert_array_equal(part, head[10:20])
    stored = bf16_to_f32(raw.data) if isinstance(raw, RawTensor) else raw.astype(np.float32)
    np.testing.assert_allclose(stored, head, rtol=2**-8, atol=1e-6)  # one rounding to dtype
    assert isinstance(raw, RawTensor) == (dtype == "BF16")


def test_unknown_name_is_refused_by_its_nearest_one(tmp_path: Path) -> None:
    with open_model(make_tiny("llama", tmp_path)) as source:
        with pytest.raises(CheckpointError, match=r"did you mean 'lm_head.weight'"):
            source.weight("lmhead.weight")
        with pytest.raises(ShapeError, match="rows 90 to 97"):
            source.weight("lm_head.weight", (90, 97))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj.weight' is missing"):
        open_model(rewrite(make_tiny("llama", tmp_path), change))


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["model.layers.0.self_attn.W_pack.weight"] = np.zeros((191, 64), np.float32)

    with pytest.raises(CheckpointError, match=r"W_pack.weight' has shape \[191, 64\].*\[192, 64\]"):
        open_model(rewrite(make_tiny("baichuan", tmp_path), change))


def test_integers_are_not_weights(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["model.norm.weight"] = np.ones(64, np.int32)

    with pytest.raises(CheckpointError, match="is I32; floats are needed"):
        open_model(rewrite(make_tiny("llama", tmp_path), change))


def test_tensor_that_the_decoder_would_ignore_is_refused(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["model.layers.0.self_attn.sinks"] = np.ones(4, np.float32)

    with pytest.raises(CheckpointError, match="sinks' is not a tensor of the llama model"):
        open_model(rewrite(make_tiny("llama", tmp_path), change))


def test_rotary_buffers_and_zero_biases_are_ignored(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        tensors[f"{Q}.bias"] = np.zeros(64, np.float32)

    open_model(rewrite(make_tiny("llama", tmp_path), change)).close()


def test_bias_that_the_config_denies_is_refused(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors[f"{Q}.bias"] = np.ones(64, np.float32)

    with pytest.raises(CheckpointError, match=r"q_proj.bias' is not a tensor"):
        open_model(rewrite(make_tiny("llama", tmp_path), change))


def test_stored_head_of_a_tied_model_must_be_the_embedding(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    folder = rewrite(make_tiny("smollm2", tmp_path), change)
    with open_model(folder) as source:
        assert not source.has("lm_head.weight")

    def spoil(tensors: Arrays) -> None:
        tensors["lm_head.weight"][95, 3] += 1

    with pytest.raises(CheckpointError, match="differs from the embedding"):
        open_model(rewrite(folder, spoil))


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    (make_tiny("llama", tmp_path) / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config.json"):
        open_model(tmp_path)


QUANTIZED = {
    "gptq_v1": QuantFormat(4, 32, True),
    "gptq_v2": QuantFormat(4, 16, False),
    "pack": QuantFormat(3, 32, True),
    "pack_asym": QuantFormat(4, 32, False),
    "int8": QuantFormat(8, -1, True, "int8_token"),
}


def quantize(family: str, folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """A tiny model with all block Linears quantized, under the family's stored names."""
    fmt = QUANTIZED[kind]
    make_tiny(family, folder)
    config = tiny_config(family)
    cfg = find_architecture(config).parse(config)
    kept = {}

    def change(tensors: Arrays) -> None:
        for name in list(stored_weights(cfg, tiny_weights(cfg))):
            if "layers" not in name or "norm" in name:
                continue
            module = name.removesuffix(".weight")
            q = quantize_nearest(tensors.pop(name), fmt)
            kept[module] = q
            if kind.startswith("gptq"):
                parts = to_gptq(q, kind[-2:])
            else:
                parts = to_int8(q) if kind == "int8" else to_compressed(q)
            tensors.update({f"{module}.{suffix}": part for suffix, part in parts.items()})

    gptq = kind.startswith("gptq")
    entry = gptq_config(fmt, kind[-2:]) if gptq else compressed_config(fmt)
    if kind == "gptq_v1":  # as in AutoGPTQ's days: the config stands alone
        rewrite(folder, change)
        (folder / "quantize_config.json").write_text(json.dumps(entry))
    else:
        rewrite(folder, change, quantization_config=entry)
    return folder, kept


@pytest.mark.parametrize("kind", sorted(QUANTIZED))
@pytest.mark.parametrize("family", ["llama", "baichuan"])
def test_quantized_modules_are_read_and_dequantized(kind: str, family: str, tmp_path: Path) -> None:
    folder, kept = quantize(family, tmp_path, kind)
    stored = "model.layers.0.self_attn.W_pack" if family == "baichuan" else K
    want = dequantize(kept[stored], (64, 128) if family == "baichuan" else None)
    with open_model(folder) as source:
        assert source.quant is not None
        assert source.stored_dtype(f"{K}.weight") == "quantized"
        assert source.format_of(K) == QUANTIZED[kind]
        assert source.format_of("lm_head") is None
        q = source.quantized(K)
        assert q is not None
        np.testing.assert_array_equal(dequantize(q), want)
        np.testing.assert_array_equal(source.weight(f"{K}.weight"), want)
        np.testing.assert_array_equal(source.weight(f"{K}.weight", (3, 9)), want[3:9])
        np.testing.assert_array_equal(source.raw(f"{K}.weight"), want)
        assert source.quantized("lm_head") is None


def test_quantized_tensors_without_a_config_are_refused(tmp_path: Path) -> None:
    folder, _ = quantize("baichuan", tmp_path, "gptq_v1")
    (folder / "quantize_config.json").unlink()
    with pytest.raises(CheckpointError, match="no quantization config"):
        open_model(folder)


def test_quantized_shape_is_checked_when_opened(tmp_path: Path) -> None:
    folder, _ = quantize("baichuan", tmp_path, "gptq_v2")
    entry = gptq_config(QuantFormat(8, 16, False), "v2")
    with pytest.raises(CheckpointError, match=r"qweight' has shape .*for 8 bits"):
        open_model(rewrite(folder, lambda tensors: None, quantization_config=entry))


def test_damaged_quantized_module_is_named_when_read(tmp_path: Path) -> None:
    folder, _ = quantize("baichuan", tmp_path, "gptq_v2")

    def change(tensors: Arrays) -> None:
        del tensors["model.layers.0.self_attn.W_pack.qzeros"]

    with (
        open_model(rewrite(folder, change)) as source,
        pytest.raises(CheckpointError, match=r"layers.0.self_attn.W_pack: .*qzeros"),
    ):
        source.weight(f"{Q}.weight")


def test_unsupported_quantization_is_refused(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path, quantization_config={"quant_method": "aqlm"})
    with pytest.raises(ConfigError, match="aqlm"):
        open_model(folder)


def test_quantized_norm_is_refused(tmp_path: Path) -> None:
    def change(tensors: Arrays) -> None:
        tensors["model.norm.qweight"] = np.zeros((8, 64), np.int32)

    with pytest.raises(CheckpointError, match=r"model.norm is quantized; it is no Linear"):
        open_model(rewrite(make_tiny("llama", tmp_path), change))


def test_a_failed_open_closes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(
        "bcquant.io.safetensors.SafetensorsCheckpoint.close", lambda self: closed.append(self.path)
    )
    make_tiny("llama", tmp_path, hidden_size=32, intermediate_size=96)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu"}))
    with pytest.raises(ConfigError, match="gelu"):
        open_model(tmp_path)
    assert closed == [tmp_path]
