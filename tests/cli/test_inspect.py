"""`bcquant inspect`: sizes counted from the file, and the verdicts with their reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factory import make_tiny, make_tiny_gguf
from tiny_quantized import quantized_folder

from bcquant.cli import main
from bcquant.io.checkpoint import open_checkpoint
from bcquant.loaders._collect import collect_facts
from bcquant.loaders._facts import linear_bits_per_weight
from bcquant.loaders._survey import CHECKPOINT_LOADERS, loaders
from bcquant.spec.quant_format import QuantFormat


def verdicts(path: Path) -> dict[str, tuple[str, str]]:
    facts = collect_facts(str(path))
    found = [loader.judge(facts) for loader in loaders(CHECKPOINT_LOADERS)]
    return {verdict.loader: (verdict.loads, verdict.reason) for verdict in found}


def test_float_folder_costs_16_bits_and_loads_in_transformers(tmp_path: Path) -> None:
    path = make_tiny("qwen2", tmp_path / "m", "BF16")
    facts = collect_facts(str(path))
    assert facts.bits_per_weight == 16.0
    assert (facts.format_name, facts.family) == ("float weights in safetensors", "qwen2")
    found = verdicts(path)
    assert found["transformers"][0] == found["vLLM"][0] == found["bcquant"][0] == "yes"
    assert found["llama.cpp"] == ("no", "it reads GGUF only")
    assert found["compressed-tensors"][0] == "no"


def test_gptq_bits_count_scales_zeros_and_g_idx(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path / "m", "v1", QuantFormat(4, 32))
    facts = collect_facts(str(path))
    row = next(r for r in facts.rows if r.name.endswith("layers.0.self_attn.q_proj.qweight"))
    # 64 x 64 weights: 4 bits, and per group of 32 a float16 scale and a 4-bit zero, and for the
    # whole matrix 64 int32 of g_idx.
    assert row.num_weights == 64 * 64
    assert row.bits_per_weight == 4 + (16 + 4) / 32 + 64 * 32 / (64 * 64)
    assert facts.format_name == "GPTQ v1, 4-bit, group 32, symmetric, in safetensors"


def test_every_weight_is_counted_once(tmp_path: Path) -> None:
    plain = collect_facts(str(make_tiny("llama", tmp_path / "f", "F16")))
    for target in ("v1", "v2", "compressed-tensors", "int-quantized"):
        fmt = QuantFormat(8, -1, True, "int8_token" if target == "int-quantized" else "none")
        packed = collect_facts(str(quantized_folder(tmp_path / target, target, fmt)))
        assert packed.num_weights == plain.num_weights, target
        assert packed.problem is None, target
        total = sum(row.num_bytes for row in packed.rows)
        assert packed.bits_per_weight == 8 * total / plain.num_weights


def test_linear_bits_leave_the_embedding_out(tmp_path: Path) -> None:
    facts = collect_facts(str(quantized_folder(tmp_path, "compressed-tensors", QuantFormat(4, 32))))
    assert facts.bits_per_weight is not None
    assert 4.5 < linear_bits_per_weight(facts) < facts.bits_per_weight


@pytest.mark.parametrize(
    ("target", "fmt", "loader", "loads", "words"),
    [
        ("v1", QuantFormat(4, 32), "transformers", "yes", "optimum and gptqmodel"),
        ("v2", QuantFormat(2, 32, False), "transformers", "yes", "optimum and gptqmodel"),
        ("v1", QuantFormat(4, 32), "compressed-tensors", "no", "this is GPTQ"),
        ("v1", QuantFormat(4, 32, False), "vLLM", "no", "--format compressed-tensors"),
        ("v1", QuantFormat(2, 32), "vLLM", "no", "not 2-bit"),
        ("v1", QuantFormat(4, 16), "vLLM", "no", "not 16"),
        ("v1", QuantFormat(4, 32), "vLLM", "unknown", "Marlin needs N % 64"),
        ("v1", QuantFormat(4, 64), "vLLM", "no", "K = 96 is not a multiple"),
        ("compressed-tensors", QuantFormat(4, 32), "transformers", "yes", "compressed-tensors"),
        ("compressed-tensors", QuantFormat(4, 32), "compressed-tensors", "yes", "pack-quantized"),
        ("compressed-tensors", QuantFormat(3, 32, False), "vLLM", "no", "zero points"),
        ("int-quantized", QuantFormat(8, -1, True, "int8_token"), "vLLM", "yes", "int8"),
        ("v1", QuantFormat(4, 32), "llama.cpp", "no", "GGUF only"),
    ],
)
def test_verdict_names_its_reason(
    tmp_path: Path, target: str, fmt: QuantFormat, loader: str, loads: str, words: str
) -> None:
    found = verdicts(quantized_folder(tmp_path, target, fmt))[loader]
    assert found[0] == loads, found
    assert words in found[1]


def test_autogptq_era_folder_is_read_by_us_and_refused_for_transformers(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 32), "baichuan")
    config = json.loads((path / "config.json").read_text())
    (path / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (path / "config.json").write_text(json.dumps(config))
    found = verdicts(path)
    assert found["bcquant"] == ("yes", "eval, generate")
    assert "no Baichuan model of its own" in found["transformers"][1]


def test_quantize_config_alone_is_the_reason_for_llama(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 32))
    config = json.loads((path / "config.json").read_text())
    (path / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (path / "config.json").write_text(json.dumps(config))
    assert "only quantize_config.json" in verdicts(path)["transformers"][1]


def test_mixed_bits_are_the_reason_for_transformers(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 32))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {r"-:lm_head": {}}
    (path / "config.json").write_text(json.dumps(config))
    assert verdicts(path)["transformers"] == (
        "no",
        "optimum reads no mixed bits or skipped modules (`dynamic`)",
    )


def test_unknown_architecture_is_described_all_the_same(tmp_path: Path) -> None:
    path = make_tiny("llama", tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    (path / "config.json").write_text(json.dumps(config))
    facts = collect_facts(str(path))
    assert (facts.architecture, facts.family) == ("GPT2LMHeadModel", None)
    assert verdicts(path)["bcquant"] == ("no", facts.problem)


def test_gguf_is_described_from_its_own_metadata(tmp_path: Path) -> None:
    path = make_tiny_gguf("llama", tmp_path / "m.gguf")
    facts = collect_facts(str(path))
    assert (facts.kind, facts.format_name) == ("gguf", "GGUF, F32 100.0%")
    assert facts.file_bytes == path.stat().st_size
    found = verdicts(path)
    assert found["llama.cpp"][0] == found["transformers"][0] == "yes"


def test_json_holds_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_tiny("llama", tmp_path / "m")
    assert main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    with open_checkpoint(path) as reader:
        assert [t["name"] for t in report["tensors"]] == list(reader.tensors)
    assert report["loaders"][0]["loader"] == "bcquant"


def test_kernel_tier_and_engine_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcquant.kernels import native

    path = str(quantized_folder(tmp_path / "m", "v1", QuantFormat(4, 32)))
    assert main(["inspect", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kernels"]["tier"] == native.active_tier()
    assert tuple(report["kernels"]["tiers"]) == native.tiers()
    assert report["generate"] == "native engine"
    assert main(["inspect", path]) == 0
    assert f"tier {native.active_tier()} (this build has" in capsys.readouterr().out
    native.context.cache_clear()
    monkeypatch.setenv("BCQ_FORCE_TIER", "z80")
    assert main(["inspect", path, "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert kernels["tier"] is None
    assert "this build has" in kernels["problem"]


def test_engine_of_a_float_checkpoint_is_torch_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(make_tiny("llama", tmp_path / "m")), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["generate"]
    assert said.startswith("torch engine (not a quantized checkpoint")


def test_layers_share_a_line_unless_all_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(make_tiny("llama", tmp_path / "m"))
    assert main(["inspect", path]) == 0
    assert "model.layers.*.mlp.up_proj.weight" in capsys.readouterr().out
    assert main(["inspect", path, "--all"]) == 0
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out


def test_missing_path_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
