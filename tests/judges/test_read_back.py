"""Our own reader as judge: every format of ours, and a folder laid out as AutoGPTQ did in 2023."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from judges.conftest import MakeSource
from judges.harness import our_decoder, our_tokens, prompts, quantize
from safetensors.torch import save_file

from bcquant import cli
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, STAGES
from bcquant.models.source import ModelSource, open_model
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge

NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.fixture(params=[QuantFormat(4, 32), QuantFormat(3, 64), QuantFormat(4, 32, False)])
def fmt(request: pytest.FixtureRequest) -> QuantFormat:
    found: QuantFormat = request.param
    return found


@pytest.fixture
def written(make_source: MakeSource, tmp_path: Path, fmt: QuantFormat) -> Path:
    """Our v1 folder of a Baichuan model, as LLaMA."""
    return quantize(make_source("baichuan"), tmp_path / "v1", fmt)


def perplexity(folder: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What `bcquant eval ppl` prints."""
    capsys.readouterr()
    command = ["eval", "ppl", str(folder), "--text", str(text), "--seq-len", "64", "--json"]
    assert cli.main(command) == 0
    value: float = json.loads(capsys.readouterr().out)["perplexity"]
    return value


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("If a suite is left empty, it is an error. " * 20, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("output", "keep_arch"), [("gptq_v2", False), ("compressed-tensors", False), ("gptq", True)]
)
def test_every_output_of_a_run_is_the_same_model(
    make_source: MakeSource, written: Path, tmp_path: Path, text: Path, fmt: QuantFormat,
    output: str, keep_arch: bool, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = make_source("baichuan")
    other = quantize(source, tmp_path / "other", fmt, output, keep_arch=keep_arch)
    ids = prompts(written)
    # The same codes and scales through the same code: every bit.
    assert torch.equal(our_decoder(other)(ids), our_decoder(written)(ids))
    assert perplexity(other, text, capsys) == perplexity(written, text, capsys)


def words(values_IO: npt.NDArray[np.uint8], bits: int) -> torch.Tensor:
    """Codes packed along axis 0 into int32 (I * bits / 32, O), by one long integer a column."""
    columns = []
    for column in values_IO.T.tolist():
        number = sum(code << (bits * i) for i, code in enumerate(column))
        columns.append(np.frombuffer(number.to_bytes(len(column) * bits // 8, "little"), "<i4"))
    return torch.from_numpy(np.stack(columns, axis=1).copy())


def stacked(parts: list[QuantizedTensor]) -> tuple[Any, Any, Any]:
    return tuple(
        np.concatenate([getattr(p, name) for p in parts])
        for name in ("codes_NK", "scales_NG", "zeros_NG")
    )


def autogptq_module(parts: list[QuantizedTensor]) -> dict[str, torch.Tensor]:
    """One Linear as AutoGPTQ 0.2 stored it, its buffer of zeros for a bias included."""
    codes_NK, scales_NG, zeros_NG = stacked(parts)
    fmt, (n, k) = parts[0].format, codes_NK.shape
    minus_one = (zeros_NG - 1) % (fmt.max_code + 1)
    return {
        "qweight": words(codes_NK.T, fmt.bits),
        "qzeros": words(minus_one.astype(np.uint8), fmt.bits).T.contiguous(),
        "scales": torch.from_numpy(scales_NG.T.copy()),
        "g_idx": torch.arange(k, dtype=torch.int32) // fmt.group_width(k),
        "bias": torch.zeros(n, dtype=torch.float16),
    }


def autogptq_tensors(source: ModelSource) -> dict[str, torch.Tensor]:
    """All tensors of a Baichuan file of that time, from the quantized weights of `source`."""
    found = {
        name: torch.from_numpy(source.weight(name)).half() for name in (EMBEDDING, FINAL_NORM, HEAD)
    }
    for layer in range(source.config.num_layers):
        block = f"model.layers.{layer}."
        groups = {name: [name] for stage in STAGES[1:] for name in stage}
        groups["self_attn.W_pack"] = list(STAGES[0])
        for name, members in groups.items():
            parts = [source.quantized(block + member) for member in members]
            assert all(part is not None for part in parts)
            for suffix, tensor in autogptq_module([p for p in parts if p is not None]).items():
                found[f"{block}{name}.{suffix}"] = tensor
        for norm in NORMS:
            found[f"{block}{norm}.weight"] = torch.from_numpy(
                source.weight(f"{block}{norm}.weight")
            ).half()
        found[f"{block}self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    return found


def autogptq_folder(folder: Path, source: Path, quantized: Path, file_name: str) -> Path:
    """A folder like TheBloke/baichuan-7B-GPTQ: config.json says nothing of the quantization."""
    folder.mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with open_model(quantized) as ours:
        assert ours.quant is not None
        fmt, tensors = ours.quant.format, autogptq_tensors(ours)
    settings = {
        "bits": fmt.bits, "group_size": fmt.group_size, "damp_percent": 0.01, "desc_act": False,
        "sym": fmt.symmetric, "true_sequential": True, "model_name_or_path": None,
        "model_file_base_name": Path(file_name).stem,
    }  # fmt: skip
    (folder / "quantize_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if file_name.endswith(".safetensors"):
        save_file(tensors, folder / file_name)
    else:
        torch.save(tensors, folder / file_name)
    return folder


@pytest.mark.parametrize(
    "file_name",
    ["model.safetensors", "gptq_model-4bit-128g.safetensors", "pytorch_model.bin",
     "gptq_model-4bit-128g.bin"],
)  # fmt: skip
def test_autogptq_era_folder_is_the_same_model(
    make_source: MakeSource, written: Path, tmp_path: Path, text: Path, file_name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = make_source("baichuan")
    era = autogptq_folder(tmp_path / "era", source, written, file_name)
    config = json.loads((era / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["BaiChuanForCausalLM"]
    assert "quantization_config" not in config
    ids = prompts(written)
    # The same codes and scales through the same code: every bit.
    assert torch.equal(our_decoder(era)(ids), our_decoder(written)(ids))
    assert perplexity(era, text, capsys) == perplexity(written, text, capsys)
    tokens = [our_tokens(folder, our_decoder(folder), ids[0]) for folder in (era, written)]
    assert tokens[0] == tokens[1]
