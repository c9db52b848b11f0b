"""Checkpoints x programs: the verdict and the words that name its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import make_tiny, make_tiny_gguf
from tiny_awq import awq_folder
from tiny_quantized import quantized_folder

from bcquant import registry
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.writer import write_safetensors
from bcquant.loaders._collect import collect_facts
from bcquant.loaders._survey import PACKAGE, loaders
from bcquant.loaders._verdict import Loader, Verdict
from bcquant.spec.quant_format import QuantFormat

KEYS = (
    "bcquant", "compressed_tensors", "llama_cpp", "onnxruntime_cpu", "onnxruntime_cuda",
    "onnxruntime_genai", "onnxruntime_qnn", "onnxruntime_webgpu", "transformers", "vllm",
)  # fmt: skip
W8A8 = QuantFormat(8, -1, True, "int8_token")


def verdicts(path: Path) -> dict[str, Verdict]:
    facts = collect_facts(str(path))
    return dict(zip(KEYS, (loader.judge(facts) for loader in loaders()), strict=True))


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"].update(changes)
    (path / "config.json").write_text(json.dumps(config))


def test_each_file_of_the_package_is_a_program() -> None:
    assert tuple(registry.names(PACKAGE)) == KEYS
    assert all(isinstance(loader, Loader) for loader in loaders())
    assert len({loader.name for loader in loaders()}) == len(KEYS)


# What every checkpoint answers, in the order of KEYS without the ONNX programs.
YES, NO, UNKNOWN = "yes", "no", "unknown"


@pytest.mark.parametrize(
    ("target", "fmt", "expected"),
    [
        ("float", None, (YES, NO, NO, YES, YES)),
        ("gguf", None, (YES, NO, YES, YES, UNKNOWN)),
        ("v1", QuantFormat(4, 32), (YES, NO, NO, YES, UNKNOWN)),
        ("v1", QuantFormat(2, 32), (YES, NO, NO, YES, NO)),
        ("v2", QuantFormat(4, 32, False), (YES, NO, NO, YES, NO)),
        ("compressed-tensors", QuantFormat(4, 32, False), (YES, YES, NO, YES, UNKNOWN)),
        ("compressed-tensors", QuantFormat(3, 32, False), (YES, YES, NO, YES, NO)),
        ("int-quantized", W8A8, (YES, YES, NO, YES, YES)),
        ("awq", QuantFormat(4, 32, False), (YES, NO, NO, YES, YES)),
        ("awq", QuantFormat(4, 32, True), (YES, NO, NO, YES, UNKNOWN)),
        ("awq", QuantFormat(4, 16, False), (YES, NO, NO, YES, UNKNOWN)),
        ("awq", QuantFormat(4, 8, False), (YES, NO, NO, NO, UNKNOWN)),
    ],
)
def test_table(
    tmp_path: Path, target: str, fmt: QuantFormat | None, expected: tuple[str, ...]
) -> None:
    path = tmp_path / "m"
    if fmt is None:
        path = make_tiny("llama", path) if target == "float" else tmp_path / "m.gguf"
        if target == "gguf":
            make_tiny_gguf("llama", path)
    elif target == "awq":
        awq_folder(path, fmt)
    else:
        quantized_folder(path, target, fmt)
    found = verdicts(path)
    readers = [key for key in KEYS if not key.startswith("onnx")]
    assert tuple(found[key].loads for key in readers) == expected, found
    for key in KEYS:
        if key.startswith("onnx"):
            assert (found[key].loads, found[key].reason) == (NO, "it reads ONNX only")


def test_act_ordered_columns_are_the_reason_before_a_weight_is_read(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 32))
    with open_checkpoint(path) as reader:
        tensors: dict[str, Any] = {name: reader.read(name) for name in reader.tensors}
    name = "model.layers.1.mlp.up_proj.g_idx"
    tensors[name] = np.ascontiguousarray(np.asarray(tensors[name])[::-1])
    write_safetensors(path / "model.safetensors", tensors, {"format": "pt"})
    found = verdicts(path)
    assert found["bcquant"].loads == "no"
    assert "model.layers.1.mlp.up_proj: columns are act-ordered" in found["bcquant"].reason
    assert found["transformers"].loads == "yes"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "gemv"}, "AWQ version 'gemv' is laid out for another kernel"),
        ({"bits": 8}, "AWQ with bits 8 cannot be read"),
    ],
)
def test_unreadable_awq_is_one_sentence(tmp_path: Path, change: Any, words: str) -> None:
    path = awq_folder(tmp_path, QuantFormat(4, 32, False))
    change_config(path, **change)
    assert words in verdicts(path)["bcquant"].reason


@pytest.mark.parametrize(
    ("fmt", "words"),
    [
        (QuantFormat(4, 32, False), "rounds to bfloat16"),
        (QuantFormat(4, 16, False), "fails on these shapes"),
        (QuantFormat(4, -1, False), "fails on these shapes"),
    ],
)
def test_awq_kernel_of_transformers_is_named(tmp_path: Path, fmt: QuantFormat, words: str) -> None:
    verdict = verdicts(awq_folder(tmp_path, fmt))["transformers"]
    assert words in verdict.reason and 'backend="torch_awq"' in verdict.reason
    assert "gptqmodel" in verdict.needs


def test_facts_of_awq_are_counted(tmp_path: Path) -> None:
    facts = collect_facts(str(awq_folder(tmp_path, QuantFormat(4, 32, False))))
    plain = collect_facts(str(make_tiny("llama", tmp_path / "f", "F16")))
    assert facts.num_weights == plain.num_weights
    row = next(r for r in facts.rows if r.name.endswith("layers.0.self_attn.q_proj.qweight"))
    # 4 bits, and per group of 32 a float16 scale and a 4-bit zero.
    assert row.bits_per_weight == 4 + (16 + 4) / 32
    assert facts.format_name == "AWQ gemm, 4-bit, group 32, asymmetric, in safetensors"


def test_a_yes_of_another_program_says_what_to_install(tmp_path: Path) -> None:
    for path in (
        quantized_folder(tmp_path / "a", "v1", QuantFormat(4, 32)),
        awq_folder(tmp_path / "b", QuantFormat(4, 32, False)),
        quantized_folder(tmp_path / "c", "compressed-tensors", QuantFormat(4, 32)),
    ):
        assert verdicts(path)["transformers"].needs.startswith("pip install accelerate")
