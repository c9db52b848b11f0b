"""ONNX models x programs, and the graph that is promised before an export is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_awq import store_as_awq
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.errors import CheckpointError
from bcquant.loaders._collect import collect_facts
from bcquant.loaders._onnx import MS, NBitsUse, OnnxFacts, planned_graph
from bcquant.loaders._onnx_rules import HEAVY
from bcquant.loaders._survey import describe, loaders
from bcquant.loaders._verdict import Verdict
from bcquant.spec.quant_format import QuantFormat

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed")

CPU, CUDA, WEBGPU, QNN, GENAI = (
    f"onnxruntime_{key}" for key in ("cpu", "cuda", "webgpu", "qnn", "genai")
)
ONNX_KEYS = (CPU, CUDA, WEBGPU, QNN, GENAI)
ALIBI = {"family": "baichuan13b", "hidden_size": 96}
W8A8 = QuantFormat(8, -1, True, "int8_token")


def checkpoint(folder: Path, target: str, fmt: QuantFormat, **factory: Any) -> Path:
    settings = {"hidden_size": 64, "intermediate_size": 128, **factory}
    make_checkpoint(settings.pop("family", "llama"), folder, dtype="F16", **settings)
    if target == "float":
        return folder
    return store_as_awq(folder, fmt) if target == "awq" else quantize_folder(folder, target, fmt)


def export(source: Path, out: Path, *flags: str) -> OnnxFacts:
    assert main(["export", "onnx", str(source), "-o", str(out), "--allow-lossy", *flags]) == 0
    facts = describe(str(out))
    assert isinstance(facts, OnnxFacts)
    return facts


def verdicts(path: Path) -> dict[str, Verdict]:
    subject = describe(str(path))
    return {key: loader.judge(subject) for key, loader in zip(ONNX_KEYS, _programs(), strict=True)}


def _programs() -> list[Any]:
    return loaders(ONNX_KEYS)


@pytest.mark.parametrize(
    ("target", "fmt", "flags", "factory"),
    [
        ("v1", QuantFormat(4, 32), (), {}),
        ("v2", QuantFormat(4, 64, False), ("--float16",), {}),
        ("v1", QuantFormat(3, 32), (), {}),
        ("v1", QuantFormat(2, 32), (), {}),
        ("compressed-tensors", QuantFormat(8, -1), (), {"family": "qwen2"}),
        ("int-quantized", W8A8, (), {}),
        ("awq", QuantFormat(4, 32, False), (), {}),
        ("v1", QuantFormat(4, 32), (), ALIBI),
        ("float", QuantFormat(), (), {}),
    ],
)
def test_the_promised_graph_is_the_exported_one(
    tmp_path: Path, target: str, fmt: QuantFormat, flags: tuple[str, ...], factory: Any
) -> None:
    source = checkpoint(tmp_path / "m", target, fmt, **factory)
    promised = planned_graph(collect_facts(str(source)), float16="--float16" in flags)
    made = export(source, tmp_path / "out", *flags).graph
    assert promised.nbits == made.nbits
    assert {op for op in HEAVY if promised.has(op)} == {op for op in HEAVY if made.has(op)}
    assert (promised.is_float16, promised.is_fixed, promised.has_attention_bias) == (
        made.is_float16, made.is_fixed, made.has_attention_bias,
    )  # fmt: skip


YES, NO, UNKNOWN = "yes", "no", "unknown"


@pytest.mark.parametrize(
    ("target", "fmt", "flags", "expected"),
    [
        ("v1", QuantFormat(4, 32), ("--float16",), (YES, YES, YES, NO, NO)),
        ("v1", QuantFormat(4, 32), ("--target", "genai"), (YES, YES, YES, NO, YES)),
        ("v1", QuantFormat(2, 32), (), (YES, UNKNOWN, YES, NO, NO)),
        ("v1", QuantFormat(8, 32), (), (YES, YES, YES, NO, NO)),
        ("int-quantized", W8A8, (), (YES, UNKNOWN, UNKNOWN, NO, NO)),
        ("v1", QuantFormat(4, 32), ("--variant", "std"), (YES, UNKNOWN, UNKNOWN, NO, NO)),
    ],
)
def test_table_of_our_exports(
    tmp_path: Path, target: str, fmt: QuantFormat, flags: tuple[str, ...], expected: Any
) -> None:
    export(checkpoint(tmp_path / "m", target, fmt), tmp_path / "out", *flags)
    found = verdicts(tmp_path / "out")
    assert tuple(found[key].loads for key in ONNX_KEYS) == expected, found


def test_reasons_name_what_is_at_fault(tmp_path: Path) -> None:
    export(checkpoint(tmp_path / "m", "v1", QuantFormat(8, 64)), tmp_path / "out")
    found = verdicts(tmp_path / "out")
    assert "attention runs on the CPU" in found[CUDA].reason
    assert "ort.webgpu bundle" in found[WEBGPU].reason
    assert "fixed shapes only" in found[QNN].reason
    assert "2 or 4 bits, not 8" in found[QNN].reason
    assert "--target genai" in found[GENAI].reason
    assert found[CPU].needs == "pip install onnxruntime"


def test_alibi_is_the_reason_on_cuda(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32), **ALIBI)
    export(source, tmp_path / "out", "--float16")
    assert verdicts(tmp_path / "out")[CUDA] == Verdict(
        "ONNX Runtime CUDA", "no", "its GroupQueryAttention takes no attention bias (ALiBi)"
    )


def test_a_missing_data_file_is_a_no_everywhere(tmp_path: Path) -> None:
    export(checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32)), tmp_path / "out")
    next((tmp_path / "out").glob("model.onnx.data*")).unlink()
    found = verdicts(tmp_path / "out")
    for key in (CPU, CUDA, WEBGPU, QNN):
        assert found[key].loads == "no" and "data files are missing" in found[key].reason


def handmade(path: Path, fixed: bool = True, with_g_idx: bool = False, **attributes: int) -> Path:
    """A graph of one MatMulNBits node; its weights are left out."""
    names = ["A", "B", "scales", *(["", "g_idx"] if with_g_idx else [])]
    numbers = {"K": 64, "N": 64, "bits": 4, "block_size": 32, **attributes}
    node = onnx.helper.make_node("MatMulNBits", names, ["Y"], domain="com.microsoft", **numbers)
    shape = [1, 64] if fixed else ["batch", 64]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("A", "Y")
    ]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


@pytest.mark.parametrize(
    ("key", "change", "loads", "words"),
    [
        (CPU, {}, "unknown", "not written by bcquant"),
        (CPU, {"bits": 5}, "no", "not 5"),
        (CPU, {"block_size": 512}, "no", "not of 512"),
        (WEBGPU, {"with_g_idx": True}, "no", "g_idx is refused"),
        (WEBGPU, {"bits": 5}, "no", "2, 4 or 8 bits"),
        (QNN, {}, "unknown", "nothing forbids it"),
        (QNN, {"block_size": 128}, "no", "blocks of 32 or 64, not of 128"),
        (QNN, {"with_g_idx": True}, "no", "no g_idx"),
        (QNN, {"fixed": False}, "no", "fixed shapes only"),
    ],
)
def test_graphs_of_others(tmp_path: Path, key: str, change: Any, loads: str, words: str) -> None:
    verdict = verdicts(handmade(tmp_path / "model.onnx", **change))[key]
    assert verdict.loads == loads, verdict
    assert words in verdict.reason


def test_facts_of_a_graph(tmp_path: Path) -> None:
    facts = describe(str(handmade(tmp_path / "other.onnx", with_g_idx=True)))
    assert isinstance(facts, OnnxFacts)
    assert facts.graph.nbits == {NBitsUse(4, 32, False, True)}
    assert dict(facts.graph.ops) == {MS + "MatMulNBits": 1}
    assert facts.path == tmp_path / "other.onnx"


@pytest.mark.parametrize(
    ("changes", "loads", "words"),
    [
        ({"type": "baichuan"}, "no", "no model type 'baichuan'"),
        ({"type": None}, "no", "no model type"),
    ],
)
def test_genai_types(tmp_path: Path, changes: Any, loads: str, words: str) -> None:
    source = checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32))
    export(source, tmp_path / "out", "--target", "genai")
    file = tmp_path / "out" / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"] |= changes
    file.write_text(json.dumps(config))
    verdict = verdicts(tmp_path / "out")[GENAI]
    assert verdict.loads == loads and words in verdict.reason


def test_genai_needs_its_tokenizer(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", "v1", QuantFormat(4, 32))
    export(source, tmp_path / "out", "--target", "genai")
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert "tokenizer.json" in verdicts(tmp_path / "out")[GENAI].reason


@pytest.mark.parametrize("data", [b"", b"not a graph at all \xff\xff"])
def test_what_is_no_graph_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        describe(str(tmp_path))
