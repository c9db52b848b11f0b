"""The whole export: plan, what changes, what is refused, and what a failing disk leaves."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint

from bcquant.cli import main
from bcquant.errors import ExportError
from bcquant.exporters.gguf import EXPORTER
from bcquant.exporters.gguf.job import GgufJob
from bcquant.exporters.gguf.options import GgufOptions
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.dtypes import RawTensor
from bcquant.io.gguf_header import read_header
from bcquant.io.writer import write_safetensors
from bcquant.models.gguf_config import gguf_name, permuted_rows
from bcquant.models.source import open_model
from bcquant.quant.gguf_blocks import from_gguf_blocks
from bcquant.quant.grid import quantize_nearest
from bcquant.quant.repack import to_gptq
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., ExportPlan]
Make = Callable[..., Path]
Q_PROJ, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def stored(plan: ExportPlan) -> dict[str, str]:
    return {tensor.name: tensor.stored_as for tensor in plan.tensors}


def raw_blocks(path: Path, module: str) -> tuple[str, np.ndarray]:
    """Type and bytes of a module's weight in the file, one row a row."""
    place = read_header(path).tensors[gguf_name(f"{module}.weight")]
    data = np.fromfile(path, np.uint8, place.num_bytes, offset=place.offset)
    return place.info.dtype.removeprefix("GGUF:"), data.reshape(-1, place.row_bytes)


@pytest.mark.parametrize(
    ("fmt", "target", "kind"),
    [
        (QuantFormat(4, 32, True), "v1", "Q4_0"),
        (QuantFormat(4, 64, True), "compressed-tensors", "Q4_0"),
        (QuantFormat(4, 64, False), "v1", "Q5_0"),
        (QuantFormat(3, 32, False), "v1", "Q4_0"),
        (QuantFormat(2, 32, True), "v1", "Q4_0"),
        (QuantFormat(8, -1, True), "compressed-tensors", "Q8_0"),
        (QuantFormat(8, -1, True, "int8_token"), "int-quantized", "Q8_0"),
    ],
)
def test_the_file_carries_the_checkpoints_integers(
    fmt: QuantFormat, target: str, kind: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", fmt, target, "llama3")
    plan = export(source, tmp_path / "m.gguf")
    assert not plan.lossy
    with open_model(source) as checkpoint:
        for module in (Q_PROJ, DOWN):
            found, blocks = raw_blocks(tmp_path / "m.gguf", module)
            assert (found, stored(plan)[module]) == (kind, kind)
            values = from_gguf_blocks(blocks, kind)
            q = checkpoint.quantized(module)
            assert q is not None
            order = slice(None)
            if module == Q_PROJ:
                order = np.argsort(permuted_rows(q.out_features, checkpoint.config.head_dim))
            width = fmt.group_width(q.in_features)
            zeros = np.repeat(q.zeros_NG.astype(int), width, axis=1)
            np.testing.assert_array_equal(values.codes_NK, (q.codes_NK.astype(int) - zeros)[order])
            scales = np.repeat(q.scales_NG, width // 32, axis=1)[order]
            np.testing.assert_array_equal(values.scales_NB.view(np.uint16), scales.view(np.uint16))


@pytest.mark.parametrize("family", ["llama", "llama3", "qwen2", "qwen3", "baichuan", "baichuan2"])
def test_every_weight_reads_back_as_it_was(
    family: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    """Through our own GGUF reader, which undoes the row order; biases and norms too."""
    over = {} if family != "llama3" else {"rope_scaling": None}
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32, False), family=family, **over)
    export(source, tmp_path / "m.gguf")
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        assert after.names() == before.names()
        for name in before.names():
            np.testing.assert_array_equal(after.weight(name), before.weight(name), err_msg=name)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_matrices_keep_their_type_and_vectors_are_float32(
    dtype: str, tmp_path: Path, export: Export
) -> None:
    source = make_checkpoint("qwen2", tmp_path / "m", dtype=dtype)
    plan = export(source, tmp_path / "m.gguf")
    kinds = stored(plan)
    assert {kinds[f"{Q_PROJ}.weight"], kinds["lm_head.weight"]} == {dtype}
    assert {kinds[f"{Q_PROJ}.bias"], kinds["model.norm.weight"]} == {"F32"}
    assert not plan.lossy


@pytest.mark.parametrize("family", ["llama3", "baichuan", "qwen3"])
def test_the_plan_knows_the_size_of_the_file(
    family: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32), family=family)
    plan = export(source, tmp_path / "m.gguf")
    assert plan.num_bytes == (tmp_path / "m.gguf").stat().st_size
    sizes = read_header(tmp_path / "m.gguf").tensors
    for tensor in plan.tensors:
        suffix = "" if tensor.name.endswith((".weight", ".bias")) else ".weight"
        assert sizes[gguf_name(tensor.name + suffix)].num_bytes == tensor.num_bytes


def test_the_same_checkpoint_gives_the_same_bytes(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    for name in ("a.gguf", "b.gguf"):
        export(source, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_q4_1_is_lossy_and_says_by_how_much(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32, False))
    plan = export(source, tmp_path / "m.gguf", asym_as="q4_1")
    lossy = {tensor.name: tensor.error for tensor in plan.lossy}
    assert len(lossy) == 14 and {stored(plan)[name] for name in lossy} == {"Q4_1"}
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        for module, error in lossy.items():
            exact = before.weight(f"{module}.weight").astype(np.float64)
            change = np.linalg.norm(after.weight(f"{module}.weight") - exact)
            # The plan sums squares in chunks, in float64 both: equal to the last few bits.
            np.testing.assert_allclose(error, change / np.linalg.norm(exact), rtol=1e-6)


@pytest.mark.parametrize("family", ["llama", "smollm2", "baichuan2"])
def test_embedding_and_head_can_be_rounded_to_eight_bits(
    family: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32), family=family)
    plan = export(source, tmp_path / "m.gguf", embedding_bits=8)
    lossy = {tensor.name: tensor.error for tensor in plan.lossy}
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        assert lossy.keys() == ends & set(before.names())
        assert {stored(plan)[name] for name in lossy} == {"Q8_0"}
        for name, error in lossy.items():
            exact = before.weight(name).astype(np.float64)
            change = np.linalg.norm(after.weight(name) - exact) / np.linalg.norm(exact)
            np.testing.assert_allclose(error, change, rtol=1e-6)
            # Half a step of absmax / 127 at most, which is a few standard deviations of a row.
            assert 0 < change < 0.01
    assert plan.num_bytes == (tmp_path / "m.gguf").stat().st_size


def test_groups_that_no_block_holds_become_floats(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 16))
    rounded = export(source, tmp_path / "f16.gguf")
    assert stored(rounded)[DOWN] == "F16"
    # One rounding to 11 bits: at most 2^-12 of a value on average, and more than nothing.
    assert all(0 < tensor.error < 2.0**-11 for tensor in rounded.lossy)
    assert "--unfit-as f32 is exact" in " ".join(rounded.notes)
    exact = export(source, tmp_path / "f32.gguf", unfit_as="f32")
    assert stored(exact)[DOWN] == "F32" and not exact.lossy
    with open_model(source) as before, open_model(tmp_path / "f32.gguf") as after:
        name = f"{Q_PROJ}.weight"
        np.testing.assert_array_equal(after.weight(name), before.weight(name))


def edit_quantized(folder: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Change a folder's tensors and its config.json."""
    with open_checkpoint(folder) as reader:
        tensors = {name: reader.read(name) for name in reader.tensors}
        config = dict(reader.config)
    edit(tensors, config)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_values_beyond_float16_become_float32(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors[f"{DOWN}.scales"] = tensors[f"{DOWN}.scales"] * 0 + np.float16(30000)

    source = edit_quantized(make_quantized(tmp_path / "m", QuantFormat(4, 16)), edit)
    plan = export(source, tmp_path / "m.gguf")
    assert (stored(plan)[DOWN], stored(plan)[Q_PROJ]) == ("F32", "F16")
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        name = f"{DOWN}.weight"
        np.testing.assert_array_equal(after.weight(name), before.weight(name))


@pytest.mark.parametrize(("family", "kind"), [("llama", "Q4_0"), ("baichuan2", "F32")])
def test_a_quantized_head_keeps_its_integers_unless_it_is_folded(
    family: str, kind: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    fmt = QuantFormat(4, 32)

    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        q = quantize_nearest(tensors.pop("lm_head.weight").astype(np.float32), fmt)
        tensors |= {f"lm_head.{part}": values for part, values in to_gptq(q, "v1").items()}
        config["quantization_config"]["lm_head"] = True

    source = edit_quantized(make_quantized(tmp_path / "m", fmt, family=family), edit)
    plan = export(source, tmp_path / "m.gguf")
    place = read_header(tmp_path / "m.gguf").tensors["output.weight"]
    assert place.info.dtype.removeprefix("GGUF:") == kind and not plan.lossy
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        wanted = before.weight("lm_head.weight")
        np.testing.assert_array_equal(after.weight("lm_head.weight"), wanted)


@pytest.mark.parametrize(("is_near", "kind"), [(True, "Q8_0"), (False, "F16")])
def test_eight_bit_asymmetric_is_decided_by_its_values(
    is_near: bool, kind: str, tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    """Zeros of 128 that a config calls asymmetric, or zeros of a real asymmetric grid."""
    source = make_quantized(tmp_path / "m", QuantFormat(8, 32, symmetric=is_near))
    edit_quantized(source, lambda _, config: config["quantization_config"].update(sym=False))
    with open_model(source) as opened:
        planned = EXPORTER.prepare(opened, GgufOptions()).plan()
    assert {t.error for t in planned.tensors if t.name == DOWN} == {None}, "not known before"
    plan = export(source, tmp_path / "m.gguf")
    assert stored(plan)[DOWN] == kind
    assert bool(plan.lossy) is not is_near


def test_a_gguf_source_is_copied_block_for_block(
    tmp_path: Path, demo_model: Path, export: Export
) -> None:
    plan = export(demo_model, tmp_path / "m.gguf")
    assert not plan.lossy and "Q4_1, copied" in stored(plan).values()
    for module in ("model.layers.3.self_attn.k_proj", "model.layers.29.mlp.down_proj"):
        before, after = raw_blocks(demo_model, module), raw_blocks(tmp_path / "m.gguf", module)
        assert before[0] == after[0]
        np.testing.assert_array_equal(before[1], after[1])


def test_a_float_gguf_source_keeps_its_row_order(tmp_path: Path, export: Export) -> None:
    source = make_gguf_checkpoint("llama", tmp_path / "a.gguf")
    export(source, tmp_path / "b.gguf")
    with open_checkpoint(source) as before, open_checkpoint(tmp_path / "b.gguf") as after:
        for name in before.tensors:
            np.testing.assert_array_equal(before.read(name), after.read(name), err_msg=name)


def test_writing_before_validating_is_refused(tmp_path: Path, make_quantized: Make) -> None:
    folder = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    with open_model(folder) as source, pytest.raises(ExportError, match="after it was validated"):
        GgufJob(source, GgufOptions()).write(tmp_path / "m.gguf", lambda *a: None)


def run(*argv: Any) -> int:
    return main(["export", "gguf", *map(str, argv)])


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_the_verb_writes_a_file_and_refuses_to_replace_it(
    tmp_path: Path, make_quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_quantized(tmp_path / "m", QuantFormat(4, 32)), tmp_path / "m.gguf"
    assert run(source, "-o", out) == 0
    assert "Q4_0" in capsys.readouterr().out
    before = out.read_bytes()
    assert run(source, "-o", out) == 2
    assert f"{out}: exists already" in complaint(capsys)
    assert out.read_bytes() == before


def test_the_verb_asks_before_it_changes_weights(
    tmp_path: Path, make_quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_quantized(tmp_path / "m", QuantFormat(4, 16)), tmp_path / "m.gguf"
    assert run(source, "-o", out) == 2
    assert "14 of 21 tensors would change" in complaint(capsys)
    assert not out.exists()
    assert run(source, "-o", out, "--allow-lossy") == 0


def test_the_verb_asks_before_ids_change(
    tmp_path: Path,
    sentencepiece_source: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = sentencepiece_source(tmp_path / "m", user_defined_symbols=["<x>"])
    out = tmp_path / "m.gguf"
    assert run(source, "-o", out) == 2
    assert "puts a space after 1 tokens, '<x>' among them" in complaint(capsys)
    assert run(source, "-o", out, "--allow-lossy") == 0
    assert "ids after one differ" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3"])
def test_other_float_types_go_where_they_fit(dtype: str, tmp_path: Path, export: Export) -> None:
    source = make_checkpoint("llama", tmp_path / "m")
    name = f"{DOWN}.weight"

    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        if dtype == "F64":
            tensors[name] = tensors[name].astype(np.float64) * (1 + 2.0**-30)
        else:
            bits = np.arange(tensors[name].size, dtype=np.uint8) & np.uint8(0x7E)
            tensors[name] = RawTensor(dtype, tensors[name].shape, bits)

    edit_quantized(source, edit)
    plan = export(source, tmp_path / "m.gguf")
    error = next(t.error for t in plan.tensors if t.name == name)
    assert stored(plan)[name] == ("F32" if dtype == "F64" else "F16")
    # float64 is rounded to 24 bits: at most 2^-25 of a value on average.
    assert error is not None and (0 < error < 2.0**-25 if dtype == "F64" else error == 0)
    with open_model(source) as before, open_model(tmp_path / "m.gguf") as after:
        np.testing.assert_array_equal(after.weight(name), before.weight(name))


def test_a_model_that_llama_cpp_cannot_compute_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_checkpoint("baichuan13b", tmp_path / "m", dtype="F16")
    assert run(source, "-o", tmp_path / "m.gguf") == 2
    assert "gguf cannot hold this model: it has ALiBi and 2 layers" in complaint(capsys)


def test_a_sliding_window_is_held_by_a_shorter_context(
    tmp_path: Path, make_quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32), family="mistral")
    out = tmp_path / "m.gguf"
    assert run(source, "-o", out) == 2
    assert "attends to everything, so give --context 7" in complaint(capsys)
    assert run(source, "-o", out, "--context", 7) == 0
    assert read_header(out).metadata["llama.context_length"] == 7


@pytest.mark.parametrize(
    ("context", "message"),
    [(0, "--context is 0; 1 token or more"), (257, "made for 256 tokens at most")],
)
def test_an_impossible_context_is_refused(
    context: int,
    message: str,
    tmp_path: Path,
    make_quantized: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    assert run(source, "-o", tmp_path / "m.gguf", "--context", context) == 2
    assert message in complaint(capsys)


def test_a_source_that_was_cut_short_is_refused(
    tmp_path: Path, make_quantized: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert run(source, "-o", tmp_path / "m.gguf") == 2
    assert str(weights) in complaint(capsys)
    assert not (tmp_path / "m.gguf").exists()


def test_a_source_that_shrinks_meanwhile_leaves_nothing(
    tmp_path: Path, make_quantized: Make
) -> None:
    from bcquant.errors import CheckpointError

    source = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    with open_model(source) as opened:
        job = EXPORTER.prepare(opened, GgufOptions())
        job.validate(lambda *a: None)
        os.truncate(source / "model.safetensors", 4096)
        with pytest.raises(CheckpointError, match="shrank"):
            job.write(tmp_path / "out" / "m.gguf", lambda *a: None)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("a file system of limited size needs root to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    assert subprocess.run(["umount", str(folder)]).returncode == 0, "a file was left open"


@pytest.mark.parametrize("knows_beforehand", [True, False])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    knows_beforehand: bool,
    small_disk: Path,
    tmp_path: Path,
    make_quantized: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not knows_beforehand:
        monkeypatch.setattr("bcquant.exporters.gguf.job.check_writable", lambda *a: None)
    source = make_quantized(tmp_path / "m", QuantFormat(4, 32))
    assert run(source, "-o", small_disk / "m.gguf") == 2
    line = complaint(capsys)
    assert "are free; free some space" in line or "no space left on device" in line
    assert list(small_disk.iterdir()) == []
