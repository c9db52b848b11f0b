"""Every format and family: what was sealed is what the written folder gives back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_outputs import TINY
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.cli import main
from bcquant.io.digest import digest_arrays
from bcquant.io.dtypes import bf16_to_f32, f32_to_bf16
from bcquant.io.json_file import read_json_object
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.tokenizer import open_tokenizer

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
GPTQ = ("gptq", "--group-size", "16")
# id: family, factory arguments, command line.
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gptq 4": ("llama", SMALL, GPTQ),
    "gptq 2 asym": ("llama", SMALL, (*GPTQ, "--bits", "2", "--asym")),
    "gptq 8 whole row": ("llama", SMALL, ("gptq", "--bits", "8", "--group-size", "-1")),
    "gptq 3": ("llama", SMALL, (*GPTQ, "--bits", "3")),
    "gptq_v2 asym": ("llama", SMALL, (*GPTQ, "--format", "gptq_v2", "--asym")),
    "ct 4": ("llama", SMALL, (*GPTQ, "--format", "compressed-tensors")),
    "ct 3 asym": (
        "llama", SMALL, (*GPTQ, "--format", "compressed-tensors", "--bits", "3", "--asym"),
    ),
    "w8a16": ("llama", SMALL, ("int8",)),
    "w8a16 groups": ("llama", SMALL, ("int8", "--group-size", "16")),
    "w8a8": ("llama", SMALL, ("int8", "--scheme", "w8a8")),
    "w8a8 lm_head": ("llama", SMALL, ("int8", "--scheme", "w8a8", "--lm-head")),
    "lm_head untied": ("llama", SMALL, (*GPTQ, "--lm-head")),
    "lm_head tied": ("smollm2", {}, (*GPTQ, "--lm-head")),
    "lm_head tied ct": ("smollm2", {}, (*GPTQ, "--lm-head", "--format", "compressed-tensors")),
    "tied": ("smollm2", {}, GPTQ),
    "ragged groups": ("smollm2", {}, ("gptq", "--group-size", "32")),
    "half precision": ("llama3", {**TINY, "dtype": "F16"}, GPTQ),
    "bfloat16": ("qwen2", {**SMALL, "dtype": "BF16"}, GPTQ),
    "bfloat16 ct": ("qwen2", {**SMALL, "dtype": "BF16"}, (*GPTQ, "--format", "compressed-tensors")),
    "shards in": ("llama", {**SMALL, "max_shard_bytes": 20_000}, GPTQ),
    "biases": ("llama_bias", {}, GPTQ),
    "qwen3": ("qwen3", {}, GPTQ),
    "mistral": ("mistral", {}, GPTQ),
    "baichuan": ("baichuan", SMALL, GPTQ),
    "baichuan kept": ("baichuan", SMALL, (*GPTQ, "--keep-arch")),
    "baichuan kept ct": (
        "baichuan", SMALL, (*GPTQ, "--keep-arch", "--format", "compressed-tensors", "--asym"),
    ),
    "baichuan kept w8a8": ("baichuan", SMALL, ("int8", "--scheme", "w8a8", "--keep-arch")),
    "baichuan alibi": ("baichuan13b", {}, GPTQ),
    "baichuan2": ("baichuan2", SMALL, GPTQ),
    "baichuan2 lm_head": ("baichuan2", SMALL, (*GPTQ, "--lm-head")),
    "baichuan2 kept": ("baichuan2", SMALL, (*GPTQ, "--keep-arch")),
    "baichuan2 alibi": ("baichuan2_13b", {}, GPTQ),
}  # fmt: skip
KEPT = [name for name in CASES if "kept" in name or "alibi" in name]

Quantize = Callable[..., Path]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(topics[key] for key in sorted(topics))[:5000], encoding="utf-8")
    return path


@pytest.fixture
def quantize(text: Path, tmp_path: Path) -> Quantize:
    """`quantize(model, *argv)` -> output folder."""

    def run(model: Path, *argv: str, calib: str | None = None, tokens: int = 96) -> Path:
        out = tmp_path / "out"
        verb, *flags = argv
        calibration = ["--calib", calib or str(text), "--calib-tokens", str(tokens)]
        status = main(
            [verb, str(model), *flags, *calibration, "--seq-len", "12", "--json", "-o", str(out)]
        )
        assert status == 0
        return out

    return run


def rounded(source: ModelSource, name: str, dtype: str) -> Any:
    values = source.weight(name)
    if dtype == "BF16":
        return bf16_to_f32(f32_to_bf16(values))
    return values.astype(np.float16).astype(np.float32)


def check(source: ModelSource, written: ModelSource) -> dict[str, Any]:
    """Integers by digest, everything else by value; the manifest."""
    manifest = read_json_object(written.path / "bcquant_manifest.json")
    sealed = {row["module"]: row for row in manifest["modules"]}
    dtypes = {source.stored_dtype(name) for name in source.names()}
    dtype = "BF16" if "BF16" in dtypes else "F16"
    for module, row in sealed.items():
        q = written.quantized(module)
        assert q is not None, module
        arrays = {"codes": q.codes_NK, "scales": q.scales_NG, "zeros": q.zeros_NG}
        assert digest_arrays(arrays) == row["digest"], module
        assert [row["bits"], row["symmetric"]] == [q.format.bits, q.format.symmetric]
        assert row["shape"] == [q.out_features, q.in_features]
    for name in written.names():
        if name.removesuffix(".weight") not in sealed:
            assert written.stored_dtype(name) == dtype, name
            values, wanted = written.weight(name), rounded(source, name, dtype)
            if manifest["recipe"]["format"]["activation"] != "none" and values.ndim == 1:
                # A norm or bias may have taken an input scale over: powers of two, exactly.
                ratios = np.divide(values, wanted, out=np.ones_like(values), where=wanted != 0)
                assert np.array_equal(np.frexp(ratios)[0], np.full(len(ratios), 0.5)), name
                wanted = wanted * ratios
            assert np.array_equal(values, wanted), name
    missing = set(source.names()) - set(written.names())
    assert not missing
    return manifest


@pytest.mark.parametrize("case", CASES)
def test_output_gives_back_what_was_sealed(case: str, quantize: Quantize, tmp_path: Path) -> None:
    family, factory_args, argv = CASES[case]
    model = make_checkpoint(family, tmp_path / "model", **factory_args)
    out = quantize(model, *argv)
    with open_model(model) as source, open_model(out) as written:
        manifest = check(source, written)
        layers = source.config.num_layers
        assert len(manifest["modules"]) == 7 * layers + ("--lm-head" in argv)
        assert written.arch.key == (source.arch.key if case in KEPT else written.arch.key)
        assert written.arch.key == ("baichuan" if case in KEPT else source_family(source))
        assert ("lm_head.weight" in written.names()) == (
            "--lm-head" in argv or source.has("lm_head.weight")
        )
    sentence = "Tokenizers are copied: 今天 12 + 30.\n"
    assert open_tokenizer(out).encode(sentence) == open_tokenizer(model).encode(sentence)


def source_family(source: ModelSource) -> str:
    """The family that a source is written as when its names are not kept."""
    return "llama" if source.arch.key == "baichuan" else source.arch.key


@pytest.mark.parametrize("family", ["llama", "smollm2", "qwen3"])
def test_gguf_becomes_a_folder_that_others_load(
    family: str, quantize: Quantize, tmp_path: Path
) -> None:
    model = make_gguf_checkpoint(family, tmp_path / "model.gguf")
    out = quantize(model, *GPTQ)
    with open_model(model) as source, open_model(out) as written:
        check(source, written)
    assert open_tokenizer(out).encode("Hello 今天") == open_tokenizer(model).encode("Hello 今天")


def test_seeds_and_calibration_reach_the_codes(quantize: Quantize, tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    outs = []
    for flags in (["--seed", "3"], ["--seed", "3"], ["--seed", "4"]):
        out = quantize(model, *GPTQ, *flags)
        outs.append((out / "model.safetensors").read_bytes())
        out.rename(tmp_path / f"out{len(outs)}")
    assert outs[0] == outs[1]
    assert outs[0] != outs[2]


@pytest.mark.parametrize(
    ("calib", "tokens", "origin"),
    [
        ("builtin", 96, "builtin (pydoc_data.topics)"),
        ("self", 96, "self"),
        (None, 96, "text.txt"),
        (None, 1, "text.txt"),
        (None, 2, "text.txt"),
        (None, 9, "text.txt"),
    ],
)
def test_calibration_text(
    calib: str | None, tokens: int, origin: str, quantize: Quantize, tmp_path: Path
) -> None:
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    out = quantize(model, *GPTQ, calib=calib, tokens=tokens)
    with open_model(model) as source, open_model(out) as written:
        manifest = check(source, written)
    calibration = manifest["calibration"]
    assert calibration["origin"].endswith(origin)
    num = -(-tokens // calibration["seq_len"])
    assert calibration["train"] + calibration["select"] == num
    if tokens < 8:  # nothing can be held out, so nothing calibrated can be trusted
        assert {row["candidate"] for row in manifest["modules"]} == {"rtn"}
        assert all("too few calibration tokens" in row["note"] for row in manifest["modules"])
        assert manifest["whole_model"] == {}


def test_folder_of_texts_calibrates(quantize: Quantize, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(text.read_bytes())
    (folder / "picture.png").write_bytes(b"\xff\xfe")
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    quantize(model, *GPTQ, calib=str(folder))


def damaged(model: Path, name: str, value: float, rows: slice = slice(None)) -> Path:
    """The model with some values of one float32 tensor replaced."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name][rows] = value
    save_file(tensors, model / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("model.norm.weight", np.nan, "holds values that are not finite"),
        ("model.embed_tokens.weight", 1e30, "reaches 1e+30 but float16 ends at 65504"),
        ("model.embed_tokens.weight", -65520, "reaches 6.552e+04 but float16 ends at 65504"),
        ("lm_head.weight", -np.inf, "holds values that are not finite"),
    ],
)
def test_float_that_float16_cannot_hold_is_refused_before_any_work(
    name: str,
    value: float,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = damaged(make_checkpoint("llama", tmp_path / "model", **SMALL), name, value)
    assert main([*GPTQ[:1], str(model), *GPTQ[1:], "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert f"bcquant: error: {name}: {complaint}" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_largest_float16_is_kept(quantize: Quantize, tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    out = quantize(damaged(model, "model.embed_tokens.weight", 65519, slice(3, 4)), *GPTQ)
    with open_model(out) as written:
        assert (written.weight("model.embed_tokens.weight", (3, 4)) == 65504).all()


def test_damaged_linear_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "model.layers.1.mlp.gate_proj.weight"
    model = damaged(make_checkpoint("llama", tmp_path / "model", **SMALL), name, np.inf)
    argv = ["gptq", str(model), *GPTQ[1:], "--calib-tokens", "32", "-o", str(tmp_path / "out")]
    assert main([*argv, "--json"]) == 2
    assert "gate_proj: holds weights that are not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lm_head.weight", 6e4),  # perplexity beyond a double
        ("model.layers.0.input_layernorm.weight", np.inf),  # activations NaN
        ("model.layers.0.input_layernorm.weight", 1e30),  # squares beyond float32
    ],
)
def test_model_that_overflows_gets_a_report(
    name: str,
    value: float,
    quantize: Quantize,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In bfloat16 all of these can be stored; what is not finite has no number in the report."""
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    tensors[name][::2] = value
    save_file(tensors, model / "model.safetensors")
    out = quantize(model, *GPTQ)
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert None in report["whole_model"].values()
    assert len(report["modules"]) == 14
    with open_model(out) as written:
        assert written.quantized("model.layers.1.mlp.down_proj") is not None


def test_written_weights_are_fresh_files(quantize: Quantize, tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path / "model", **SMALL)
    out = quantize(model, *GPTQ)
    names = {p.name for p in out.iterdir()}
    assert names == {
        "bcquant_manifest.json", "config.json", "model.safetensors", "quant_report.json",
        "quantize_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == json.loads((out / "quantize_config.json").read_text())
    assert config["torch_dtype"] == "float16"
