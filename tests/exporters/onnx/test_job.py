"""Plan, validate, write: exact sizes, refusals, the same bytes, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_run import quiet
from factory import make_tiny
from onnx_run import export
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder, quantized_folder

from bcquant.cli import main
from bcquant.errors import CheckpointError, ConfigError, ExportError
from bcquant.exporters.onnx.job import OnnxJob
from bcquant.exporters.onnx.options import OnnxOptions
from bcquant.exporters.onnx.proto import onnx_package
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.dtypes import RawTensor, f32_to_bf16
from bcquant.io.writer import write_safetensors
from bcquant.models.architecture import EMBEDDING
from bcquant.models.source import open_model
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.onnx_blocks import NBits, from_matmul_nbits
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

W8A8 = QuantFormat(8, -1, activation="int8_token")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A quantized checkpoint with a tokenizer."""
    folder = make_checkpoint("llama3", tmp_path / "m", dtype="F16")
    return quantize_folder(folder, "v1", QuantFormat(4, 32))


def plan_of(source: Path, validate: bool = False, **options: Any) -> ExportPlan:
    with open_model(source) as model:
        job = OnnxJob(model, OnnxOptions(**options))
        return job.validate(quiet) if validate else job.plan()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "options",
    [{}, {"float16": True}, {"embedding_bits": 8}, {"variant": "std"}, {"split_mb": 1}],
    ids=str,
)
def test_planned_sizes_are_those_written(options: dict[str, Any], tmp_path: Path) -> None:
    size = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 1536}
    source = quantized_folder(tmp_path / "m", "v2", QuantFormat(4, 32, False), "smollm2",
                              num_attention_heads=4, **size)  # fmt: skip
    plan = plan_of(source, **options)
    out = export(source, tmp_path / "out", **options, accuracy_level=4)
    written = {path.name: path.stat().st_size for path in out.iterdir()}
    facts = written.pop("bcquant_export.json")
    assert 0 < facts < 100_000 and dict(plan.files) == {**written, "bcquant_export.json": 0}
    assert len(written) == (3 if "split_mb" in options else 2)
    weights = sum(tensor.num_bytes for tensor in plan.tensors)
    tables = 2 * 256 * 64 // 2 * (2 if "float16" in options else 4)  # rotary
    padding = sum(size for name, size in written.items() if ".data" in name) - weights - tables
    assert 0 <= padding < 4096 * 20


def test_the_plan_reads_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"{args} was read")

    with open_model(source) as model:
        for method in ("weight", "raw", "quantized"):
            monkeypatch.setattr(type(model), method, refuse)
        plan = OnnxJob(model, OnnxOptions()).plan()
    assert [t.stored_as for t in plan.tensors[:2]] == ["F16", "F32"]
    assert "MatMulNBits 4-bit, blocks of 32" in {t.stored_as for t in plan.tensors}
    assert plan.lossy == ()


def test_tensors_are_those_of_the_model_in_order(source: Path) -> None:
    with open_model(source) as model:
        names = [name.removesuffix(".weight") for name in model.names()]
    found = plan_of(source).tensors
    assert [tensor.name.removesuffix(".weight") for tensor in found] == names


@pytest.mark.parametrize(
    ("family", "fmt", "over", "options", "words"),
    [
        (
            "llama", QuantFormat(4, 24), {"hidden_size": 96, "num_attention_heads": 6}, {},
            "groups of 24 columns are no multiple of 16",
        ),
        ("llama", QuantFormat(4, 16), {"head_dim": 20}, {}, "head_dim is 20; .* use --variant std"),
        ("llama", QuantFormat(4, 32), {"vocab_size": 16000}, {"split_mb": 1}, "data files may hav"),
        (
            "llama", QuantFormat(4, -1), {"hidden_size": 72, "head_dim": 16},
            {"embedding_bits": 8}, "a hidden size that 16 divides; it is 72",
        ),
        ("llama", QuantFormat(4, 32), {}, {"target": "genai"}, "which --target genai needs"),
        ("llama", QuantFormat(4, 32), {}, {"target": "web"}, "which --target web needs"),
    ],
)  # fmt: skip
def test_refusals(
    family: str, fmt: QuantFormat, over: dict[str, Any], options: dict[str, Any], words: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source = quantized_folder(tmp_path / "m", "compressed-tensors", fmt, family, **over)
    refusals = plan_of(source, validate=True, **options).refusals
    assert len(refusals) == 1
    assert re.search(words, refusals[0])
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    assert main(["export", "onnx", str(source), "-o", str(tmp_path / "out"), *flags]) == 2
    assert refusals[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_same_bytes_again_and_from_another_place(source: Path, tmp_path: Path) -> None:
    first = contents(export(source, tmp_path / "a"))
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / "m")
    assert contents(export(moved, tmp_path / "b")) == first
    names = {"model.onnx", "model.onnx.data", "bcquant_export.json", "tokenizer.json",
             "tokenizer_config.json"}  # fmt: skip
    assert set(first) == names


def test_facts(source: Path, tmp_path: Path) -> None:
    facts = json.loads((export(source, tmp_path / "out") / "bcquant_export.json").read_text())
    assert facts["exporter"] == "onnx" and facts["source"]["family"] == "llama"
    assert facts["options"]["accuracy_level"] == 0
    module = facts["modules"]["model.layers.1.mlp.down_proj"]
    assert module == {"bits": 4, "group_size": 32, "symmetric": True, "activation": "none"}
    assert len(facts["modules"]) == 14


def test_integers_in_the_file_are_the_checkpoints(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    source = quantized_folder(tmp_path / "m", "v2", QuantFormat(3, 32, False), "baichuan")
    out = export(source, tmp_path / "out")
    graph = onnx.load(str(out / "model.onnx")).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 14
    with open_model(source) as model:
        for node in nodes:
            attributes = {a.name: a.i for a in node.attribute}
            b, scales, zero_points = (arrays[name] for name in node.input[1:])
            stored = NBits(attributes["bits"], attributes["block_size"], b, scales, zero_points)
            found = from_matmul_nbits(stored, attributes["K"])
            q = model.quantized(node.input[1].removesuffix(".b"))
            assert q is not None
            assert np.array_equal(found.codes_NK, q.codes_NK)
            assert np.array_equal(found.scales_NG, q.scales_NG.astype(np.float32))
            assert np.array_equal(found.zeros_NG, q.zeros_NG)


@pytest.mark.parametrize("variant", ["ort", "std"])
def test_the_checker_accepts_the_file(variant: str, source: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = export(source, tmp_path / "out", variant=variant) / "model.onnx"
    if variant == "ort":
        # ONNX Runtime keeps this operator of its own in ai.onnx's domain, where no schema has it.
        model = onnx.load(str(path), load_external_data=False)
        for node in model.graph.node:
            if node.op_type == "SimplifiedLayerNormalization":
                node.domain = "com.microsoft"
        path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))
    model = onnx.load(str(path), load_external_data=False)
    assert {p.key: p.value for p in model.metadata_props}["source"] == "m"
    assert {o.domain: o.version for o in model.opset_import} == (
        {"": 18, "com.microsoft": 1} if variant == "ort" else {"": 23}
    )
    assert model.ir_version == (8 if variant == "ort" else 11)


def test_a_tied_rounded_embedding_is_stored_once(tmp_path: Path) -> None:
    source = make_tiny("smollm2", tmp_path / "m", "F16", hidden_size=192, vocab_size=4096)
    sizes = {bits: dict(plan_of(source, embedding_bits=bits).files) for bits in (4, 8, 16)}
    data = {bits: files["model.onnx.data"] for bits, files in sizes.items()}
    values = 4096 * 192
    # 8 bits and a float32 scale for each 64 values; 4 bits and one for each 32
    assert data[16] - data[8] == pytest.approx(values * (2 - 1 - 4 / 64), abs=4096 * 4)
    assert data[16] - data[4] == pytest.approx(values * (2 - 0.5 - 4 / 32), abs=4096 * 4)


def test_rounding_errors_are_measured(tmp_path: Path) -> None:
    source = make_tiny("llama", tmp_path / "m", "F32")
    plan = plan_of(source, validate=True, embedding_bits=4)
    assert [t.name for t in plan.lossy] == [EMBEDDING, "lm_head.weight"]
    with open_model(source) as model:
        weight = model.weight(EMBEDDING)
    rounded = dequantize(quantize_nearest(weight, QuantFormat(4, 32)))
    wanted = np.linalg.norm(rounded - weight) / np.linalg.norm(weight)
    # the same numbers, summed in float64 there and in float32 here
    assert plan.lossy[0].error == pytest.approx(wanted, rel=1e-5)


def test_float16_says_what_it_changes(tmp_path: Path) -> None:
    wide = plan_of(make_tiny("llama", tmp_path / "f32", "F32"), validate=True, float16=True)
    exact = plan_of(make_tiny("llama", tmp_path / "f16", "F16"), validate=True, float16=True)
    assert len(wide.lossy) == len(wide.tensors) and exact.lossy == ()
    # float16 keeps 11 bits; the root mean square of rounding is at most 2^-12 / sqrt(3) * 2
    assert 0 < max(t.error or 0.0 for t in wide.lossy) < 3e-4


def test_float16_overflow_is_an_error(tmp_path: Path) -> None:
    source = make_tiny("llama", tmp_path / "m", "BF16")
    spoil(source, "lm_head.weight", 2.0**20)
    with pytest.raises(ExportError, match=r"lm_head.weight: a value of 1.049e\+06 does not fit"):
        plan_of(source, validate=True, float16=True)
    assert plan_of(source, validate=True).lossy == ()


def spoil(folder: Path, name: str, value: float) -> None:
    """Put one BF16 value into a tensor."""
    with open_checkpoint(folder) as reader:
        tensors: dict[str, Any] = {n: reader.read(n) for n in reader.tensors}
    tensors[name].flat[7] = f32_to_bf16(np.array([value], np.float32))[0]
    bits = {n: RawTensor("BF16", a.shape, a) for n, a in tensors.items()}
    write_safetensors(folder / "model.safetensors", bits, {"format": "pt"})


def test_a_norm_head_is_not_rounded(tmp_path: Path) -> None:
    plan = plan_of(make_tiny("baichuan2", tmp_path / "m", "F16"))
    assert plan.tensors[-1].stored_as == "F32"
    assert any("NormHead" in note for note in plan.notes)


def test_bad_scales_are_found_before_writing(tmp_path: Path) -> None:
    source = quantized_folder(tmp_path / "m", "v1", QuantFormat(4, 32))
    with open_checkpoint(source) as reader:
        tensors: dict[str, Any] = {n: reader.read(n) for n in reader.tensors}
    tensors["model.layers.1.mlp.up_proj.scales"][0, 0] = np.nan
    write_safetensors(source / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj"):
        plan_of(source, validate=True)


def test_a_checkpoint_truncated_after_validation(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_model(source) as model:
        job = OnnxJob(model, OnnxOptions())
        job.validate(quiet)
        weights = source / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"model.safetensors"):
            job.write(out, quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system of limited size needs root to mount a tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        assert main(["export", "onnx", str(source), "-o", str(disk / "out")]) == 2
        assert "bytes are needed but" in capsys.readouterr().err
        with open_model(source) as model, pytest.MonkeyPatch.context() as patch:
            patch.setattr("bcquant.exporters.onnx.job.check_writable", lambda *args: None)
            job = OnnxJob(model, OnnxOptions())
            job.validate(quiet)
            with pytest.raises(ExportError, match="no space left"):
                job.write(disk / "out", quiet)
        assert list(disk.iterdir()) == []
    finally:
        assert subprocess.run(["umount", str(disk)]).returncode == 0


def test_without_the_onnx_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx"):
        onnx_package()


def test_a_broken_tokenizer_is_found_before_writing(source: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        plan_of(source, validate=True)


def test_without_a_tokenizer_none_is_written(tmp_path: Path) -> None:
    source = quantized_folder(tmp_path / "m", "v1", QuantFormat(4, 32))
    assert any("has no tokenizer" in note for note in plan_of(source).notes)
    names = {p.name for p in export(source, tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "bcquant_export.json"}


@pytest.mark.parametrize(
    ("family", "bits", "options", "version"),
    [
        ("llama", 4, {}, "1.20"), ("baichuan13b", 4, {}, "1.22"), ("llama", 8, {}, "1.23"),
        ("llama", 4, {"embedding_bits": 8}, "1.23"), ("llama", 2, {}, "1.24"),
        ("llama", 2, {"variant": "std"}, "1.23"),
    ],
)  # fmt: skip
def test_the_plan_says_which_runtime_is_needed(
    family: str, bits: int, options: dict[str, Any], version: str, tmp_path: Path
) -> None:
    source = quantized_folder(tmp_path / "m", "v1", QuantFormat(bits, 16), family)
    assert plan_of(source, **options).notes[0] == f"needs ONNX Runtime {version} or later"


@pytest.mark.parametrize("options", [{}, {"embedding_bits": 8}, {"float16": True}], ids=str)
def test_weights_are_never_whole_in_memory(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak follows the rows read at a time, here 0.5 MB of a 33 MB embedding."""
    monkeypatch.setattr("bcquant.exporters.onnx.float_weights._VALUES_AT_ONCE", 1 << 18)
    size = {"vocab_size": 1 << 17, "hidden_size": 128, "num_attention_heads": 8}
    source = make_tiny("smollm2", tmp_path / "m", "F16", **size)
    tracemalloc.start()
    export(source, tmp_path / "out", **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6  # measured 4.7 MB; 8.1 where rows are rounded, in several float32 copies
