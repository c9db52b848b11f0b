"""What a package holds of a checkpoint's tensors, and what storing them changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from export_run import quiet
from factory import FAMILIES
from tiny_checkpoint import make_gguf_checkpoint

from bcquant.errors import ExportError
from bcquant.exporters.mobile import EXPORTER
from bcquant.exporters.mobile.options import MobileOptions
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.dtypes import RawTensor
from bcquant.io.package import Package, open_package
from bcquant.io.package_index import BLOB_KINDS, POSITIONS, WINDOWS, section_name
from bcquant.io.writer import write_safetensors
from bcquant.kernels import native
from bcquant.kernels.reference import unpack_weight
from bcquant.models.rope_tables import rope_tables
from bcquant.models.source import open_model
from bcquant.quant.grid import quantize_nearest
from bcquant.quant.repack import to_gptq
from bcquant.spec.export_plan import ExportPlan
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., ExportPlan]
Make = Callable[..., Path]
SAME_NAMES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
    "head_dim", "max_positions", "bos_id", "eos_ids", "pad_id",
)  # fmt: skip
Q_PROJ, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def tensors_of(package: Package) -> dict[str, npt.NDArray[Any] | native.PackedWeight]:
    """Canonical name -> opened blob or float32 vector, for every tensor of the package."""
    found: dict[str, Any] = {}
    for section in package.sections:
        data = package.data(section)
        if section.kind in BLOB_KINDS:
            found[section.name] = native.open_packed(data)
        elif section.name.startswith("model.") or section.kind == 3:
            found[section.name] = np.frombuffer(data, "<f4")
    return found


def half_values(packed: native.PackedWeight) -> npt.NDArray[np.float16]:
    return unpack_weight(packed.tobytes()).codes_NK


@pytest.mark.parametrize(
    ("fmt", "target", "activations"),
    [
        (QuantFormat(4, 32, True), "v1", 1),
        (QuantFormat(4, 64, False), "v2", 1),
        (QuantFormat(4, -1, True), "compressed-tensors", 1),
        (QuantFormat(3, 32, False), "v1", 1),
        (QuantFormat(2, 32, True), "v1", 1),
        (QuantFormat(8, 32, False), "v1", 1),
        (QuantFormat(8, -1, True), "compressed-tensors", 1),
        (QuantFormat(8, -1, True, "int8_token"), "int-quantized", 2),
    ],
)
def test_blobs_hold_the_checkpoints_integers(
    fmt: QuantFormat, target: str, activations: int, tmp_path: Path, export: Export,
    make_quantized: Make,
) -> None:  # fmt: skip
    source = make_quantized(tmp_path / "m", fmt, target, "llama3", hidden_size=64)
    plan = export(source, tmp_path / "m.bcq")
    assert not plan.lossy
    with open_model(source) as checkpoint, open_package(tmp_path / "m.bcq") as package:
        assert package.model.activations == activations
        blobs, compared = tensors_of(package), 0
        for name in checkpoint.names():
            q = checkpoint.quantized(name.removesuffix(".weight")) if name.endswith("t") else None
            if q is None or len(checkpoint.shape(name)) == 1:
                continue
            packed = blobs[name]
            assert isinstance(packed, native.PackedWeight)
            codes, scales, zeros = packed.unpack()
            np.testing.assert_array_equal(codes, q.codes_NK)
            np.testing.assert_array_equal(scales.view(np.uint16), q.scales_NG.view(np.uint16))
            np.testing.assert_array_equal(zeros, q.zeros_NG)
            assert packed.has_zeros == (not fmt.symmetric)
            compared += 1
        assert compared == 14


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_family_is_there_as_it_was(
    family: str, tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m", family)
    plan = export(source, tmp_path / "m.bcq")
    with open_model(source) as checkpoint, open_package(tmp_path / "m.bcq") as package:
        package.verify()
        cfg, model, found = checkpoint.config, package.model, tensors_of(package)
        assert set(found) == set(checkpoint.names())
        for name in checkpoint.names():
            packed, wanted = found[name], checkpoint.weight(name)
            if isinstance(packed, native.PackedWeight):
                # A folded NormHead is float32; all else was float16 already.
                packed, wanted = half_values(packed), wanted.astype(np.float16)
            np.testing.assert_array_equal(packed, wanted, err_msg=name)
        lossy = {tensor.name for tensor in plan.lossy}
        assert lossy == ({"lm_head.weight"} if cfg.norm_head else set())
        for key in SAME_NAMES:
            assert getattr(model, key) == getattr(cfg, key), key
        assert model.rms_norm_eps == np.float32(cfg.rms_norm_eps)
        assert (model.ties_head, model.activations) == (cfg.tie_embeddings, 0)
        assert model.is_alibi == (cfg.position == "alibi")


@pytest.mark.parametrize("family", ["llama", "llama3", "llama_linear"])
def test_frequencies_give_the_tables_that_the_decoder_uses(
    family: str, tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m", family)
    export(source, tmp_path / "m.bcq")
    with open_model(source) as checkpoint, open_package(tmp_path / "m.bcq") as package:
        section = package.find(POSITIONS)
        assert section is not None
        frequencies = np.frombuffer(package.data(section), "<f4")
        angles = np.arange(256, dtype=np.float32)[:, None] * frequencies
        cos, sin = rope_tables(checkpoint.config, 256)
        np.testing.assert_array_equal(np.cos(angles.astype(np.float64)).astype(np.float32), cos)
        np.testing.assert_array_equal(np.sin(angles.astype(np.float64)).astype(np.float32), sin)


def test_slopes_and_windows(tmp_path: Path, export: Export, make_float: Make) -> None:
    export(make_float(tmp_path / "a", "baichuan13b"), tmp_path / "a.bcq")
    export(make_float(tmp_path / "w", "mistral"), tmp_path / "w.bcq")
    with open_package(tmp_path / "a.bcq") as package:
        slopes = np.frombuffer(package.data(_section(package, POSITIONS)), "<f4")
        # Six heads: 2^-2, 2^-4, 2^-6, 2^-8, then every second of eight: 2^-1, 2^-3.
        np.testing.assert_array_equal(slopes, 2.0 ** -np.array([2, 4, 6, 8, 1, 3]))
        assert package.find(WINDOWS) is None
    with open_package(tmp_path / "w.bcq") as package:
        windows = np.frombuffer(package.data(_section(package, WINDOWS)), "<u4")
        assert windows.tolist() == [7, 7]


def _section(package: Package, kind: int) -> Any:
    section = package.find(kind)
    assert section is not None, section_name(kind, None)
    return section


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_floats_that_float16_rounds_are_lossy_and_say_by_how_much(
    dtype: str, tmp_path: Path, export: Export, make_float: Make
) -> None:
    source = make_float(tmp_path / "m", "qwen2", dtype)
    plan = export(source, tmp_path / "m.bcq")
    errors = {tensor.name: tensor.error for tensor in plan.tensors}
    with open_model(source) as checkpoint, open_package(tmp_path / "m.bcq") as package:
        found = tensors_of(package)
        for name in checkpoint.names():
            exact, packed = checkpoint.weight(name).astype(np.float64), found[name]
            is_blob = isinstance(packed, native.PackedWeight)
            values = half_values(packed) if isinstance(packed, native.PackedWeight) else packed
            change = np.linalg.norm(values.astype(np.float64) - exact) / np.linalg.norm(exact)
            # Sums of squares in float64 on both sides, in another order: 1e-12 is far above.
            np.testing.assert_allclose(errors[name] or 0.0, change, rtol=1e-12)
            # bfloat16 has 8 bits and float16 11: only values below 6e-5 are rounded.
            assert not is_blob or change < 2.0**-11
            assert is_blob or change == 0
    assert len(plan.lossy) > 0 or dtype == "BF16"


def test_a_quantized_head_keeps_its_integers_unless_it_is_folded(
    tmp_path: Path, export: Export, make_quantized: Make
) -> None:
    for family, bits in (("llama", 4), ("baichuan2", 16)):
        source = _quantize_head(make_quantized(tmp_path / family, family=family))
        plan = export(source, tmp_path / f"{family}.bcq")
        with open_model(source) as checkpoint, open_package(tmp_path / f"{family}.bcq") as package:
            packed = tensors_of(package)["lm_head.weight"]
            assert isinstance(packed, native.PackedWeight) and packed.bits == bits
            if bits == 16:
                wanted = checkpoint.weight("lm_head.weight").astype(np.float16)
                np.testing.assert_array_equal(half_values(packed), wanted)
        assert len(plan.lossy) == (bits == 16)


def _quantize_head(folder: Path) -> Path:
    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        q = quantize_nearest(tensors.pop("lm_head.weight").astype(np.float32), QuantFormat(4, 32))
        tensors |= {f"lm_head.{part}": values for part, values in to_gptq(q, "v1").items()}
        config["quantization_config"]["lm_head"] = True

    return edit_folder(folder, edit)


def edit_folder(folder: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Change a folder's tensors and its config.json."""
    with open_checkpoint(folder) as reader:
        tensors = {name: reader.read(name) for name in reader.tensors}
        config = dict(reader.config)
    edit(tensors, config)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        (f"{DOWN}.weight", 70000.0, "F32", "holds 70000, which float16 (65504 at most)"),
        (f"{DOWN}.weight", np.nan, "F16", "holds nan, which float16"),
        ("model.norm.weight", np.inf, "F32", "holds inf, which float32"),
        ("model.norm.weight", 1e300, "F64", "holds 1e+300, which float32"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(
    name: str, value: float, dtype: str, message: str, tmp_path: Path, make_float: Make
) -> None:
    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        kind = {"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]
        tensors[name] = tensors[name].astype(kind)
        tensors[name].reshape(-1)[3] = value

    with open_model(edit_folder(make_float(tmp_path / "m"), edit)) as source:
        job = EXPORTER.prepare(source, MobileOptions())
        with pytest.raises(ExportError, match="correct the checkpoint") as caught:
            job.validate(quiet)
    assert f"{name} {message}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["F64", "F8_E4M3"])
def test_other_float_types_go_where_they_fit(
    dtype: str, tmp_path: Path, export: Export, make_float: Make
) -> None:
    name = f"{DOWN}.weight"

    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        if dtype == "F64":
            tensors[name] = tensors[name].astype(np.float64) * (1 + 2.0**-30)
        else:
            bits = np.arange(tensors[name].size, dtype=np.uint8) & np.uint8(0x7E)
            tensors[name] = RawTensor(dtype, tensors[name].shape, bits)

    source = edit_folder(make_float(tmp_path / "m"), edit)
    plan = export(source, tmp_path / "m.bcq")
    error = next(t.error for t in plan.tensors if t.name == name)
    # 2^-30 of every value is what float16 drops; 8-bit floats fit.
    assert error == pytest.approx(2.0**-30, rel=1e-6) if dtype == "F64" else error == 0


def test_a_gguf_source_is_written_too(tmp_path: Path, export: Export) -> None:
    source = make_gguf_checkpoint("llama", tmp_path / "a.gguf")
    export(source, tmp_path / "a.bcq")
    with open_model(source) as checkpoint, open_package(tmp_path / "a.bcq") as package:
        packed = tensors_of(package)[f"{Q_PROJ}.weight"]
        assert isinstance(packed, native.PackedWeight)
        wanted = checkpoint.weight(f"{Q_PROJ}.weight").astype(np.float16)
        np.testing.assert_array_equal(half_values(packed), wanted)
