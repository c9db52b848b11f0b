from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from bcquant.errors import ExportError
from bcquant.io import atomic
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import (
    RawTensor,
    TensorSpec,
    plan_shards,
    spec_of,
    write_safetensors,
    write_sharded,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ARRAYS = {
    "f16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "f32": np.arange(4, dtype=np.float32),
    "i32": np.arange(-2, 2, dtype=np.int32),
    "i64": np.array([[1 << 40]], np.int64),
    "u8": np.arange(3, dtype=np.uint8),
    "i8": np.arange(-1, 2, dtype=np.int8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def test_the_reference_library_reads_what_write_safetensors_wrote(tmp_path):
    write_safetensors(tmp_path / "t", ARRAYS, {"format": "np"})
    loaded = safetensors.numpy.load_file(tmp_path / "t")
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safetensors.safe_open(tmp_path / "t", "np") as file:
        assert file.metadata() == {"format": "np"}


def test_the_reference_library_reads_bf16(tmp_path):
    want = torch.randn(3, 5).to(torch.bfloat16)
    bits = want.view(torch.int16).numpy().view(np.uint16)
    write_safetensors(tmp_path / "t", {"w": RawTensor("BF16", (3, 5), bits)}, {})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "t")["w"], want)


def test_strided_and_big_endian_arrays_are_written_in_c_order(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"t": base.T, "step": base[:, ::2], "big": base.astype(">f4")}
    write_safetensors(tmp_path / "t", tensors, {})
    with SafetensorsFile(tmp_path / "t") as file:
        for name, array in tensors.items():
            np.testing.assert_array_equal(file.read(name), array)


def test_the_header_keeps_the_order_and_is_padded(tmp_path):
    write_safetensors(tmp_path / "t", {"z": ARRAYS["f32"], "a": ARRAYS["i32"]}, {"k": "v"})
    data = (tmp_path / "t").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert list(header) == ["__metadata__", "z", "a"]
    assert header["z"]["data_offsets"] == [0, 16]


def test_an_order_that_would_misalign_is_laid_out_widest_first(tmp_path):
    tensors = {"odd": ARRAYS["u8"], "half": ARRAYS["f16"], "wide": ARRAYS["i64"]}
    write_safetensors(tmp_path / "t", tensors, {})
    data = (tmp_path / "t").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header) == ["odd", "half", "wide"]
    begins = {name: entry["data_offsets"][0] for name, entry in header.items()}
    assert begins == {"wide": 0, "half": 8, "odd": 20}


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_safetensors(tmp_path / name, ARRAYS, {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"c": np.zeros(2, np.complex64)}, {}, "complex64 cannot be stored"),
        ({"o": np.array([None])}, {}, "object cannot be stored"),
        ({"": np.zeros(2)}, {}, "cannot be used"),
        ({"__metadata__": np.zeros(2)}, {}, "cannot be used"),
        ({"a": np.zeros(2)}, {"k": 1}, "metadata must map strings"),
        ({"\ud800": np.zeros(2)}, {}, "not valid Unicode"),
    ],
)
def test_write_safetensors_refuses_and_leaves_nothing(tmp_path, tensors, metadata, message):
    with pytest.raises(ExportError, match=message):
        write_safetensors(tmp_path / "t", tensors, metadata)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("dtype", "shape"), [("F4", (2,)), ("F32", (-1,)), ("F32", (2**61, 4))])
def test_tensor_spec_refuses_what_the_format_cannot_hold(dtype, shape):
    with pytest.raises(ExportError, match="'w'"):
        TensorSpec("w", dtype, shape)


def test_tensor_spec_takes_any_integers_and_sequence():
    assert TensorSpec("w", "F32", [np.int64(2), 3]) == TensorSpec("w", "F32", (2, 3))


def specs(*sizes: int) -> list[TensorSpec]:
    return [TensorSpec(f"t{i}", "U8", (size,)) for i, size in enumerate(sizes)]


def sizes_of(plan) -> list[list[int]]:
    return [[spec.num_bytes for spec in shard] for shard in plan.shards]


def test_plan_shards_fills_each_to_the_limit_in_order():
    plan = plan_shards(specs(4, 4, 3, 9, 1), 8)
    assert sizes_of(plan) == [[4, 4], [3], [9], [1]]
    assert plan.file_names[1] == "model-00002-of-00004.safetensors"
    assert plan.total_bytes == 21
    assert plan.weight_map["t3"] == "model-00003-of-00004.safetensors"


def test_plan_shards_uses_one_plain_name_when_all_fits():
    plan = plan_shards(specs(4, 4), 8)
    assert plan.file_names == ("model.safetensors",)


@pytest.mark.parametrize(
    ("tensors", "limit", "message"),
    [
        ([], 8, "no tensors"),
        (specs(1) + specs(1), 8, "given twice"),
        (specs(1), 0, "at least 1"),
    ],
)
def test_plan_shards_refuses(tensors, limit, message):
    with pytest.raises(ExportError, match=message):
        plan_shards(tensors, limit)


def all_specs() -> list[TensorSpec]:
    return [spec_of(name, array) for name, array in ARRAYS.items()]


def test_write_sharded_fetches_in_order_and_reads_back(tmp_path):
    asked: list[str] = []

    def fetch(name):
        asked.append(name)
        return ARRAYS[name]

    plan = write_sharded(tmp_path, all_specs(), fetch, 16, {"format": "pt"})
    assert asked == list(ARRAYS)
    assert len(plan.shards) > 2
    assert names(tmp_path) == sorted([*plan.file_names, "model.safetensors.index.json"])
    with open_checkpoint(tmp_path) as reader:
        assert set(reader.tensors) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(reader.read(name), array)


def test_write_sharded_index_is_that_of_transformers(tmp_path):
    plan = write_sharded(tmp_path, all_specs(), ARRAYS.__getitem__, 16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": plan.total_bytes}
    assert index["weight_map"] == plan.weight_map


def test_write_sharded_overwrites_its_own_earlier_output(tmp_path):
    for _ in range(2):
        write_sharded(tmp_path, all_specs(), ARRAYS.__getitem__, 16)
    with open_checkpoint(tmp_path) as reader:
        assert set(reader.tensors) == set(ARRAYS)


@pytest.mark.parametrize("limit", [16, 10_000])
@pytest.mark.parametrize(
    "other",
    [
        "model-00001-of-00099.safetensors",
        "model.safetensors.index.json",
        "model.safetensors",
    ],
)
def test_write_sharded_does_not_mix_with_another_checkpoint(tmp_path, limit, other):
    plan = plan_shards(all_specs(), limit)
    is_own = other in plan.file_names or (limit == 16 and other.endswith("index.json"))
    (tmp_path / other).write_bytes(b"theirs")
    if is_own:
        write_sharded(tmp_path, all_specs(), ARRAYS.__getitem__, limit)
        return
    with pytest.raises(ExportError, match=f"already holds {other} of another checkpoint"):
        write_sharded(tmp_path, all_specs(), ARRAYS.__getitem__, limit)
    assert names(tmp_path) == [other]


def test_write_sharded_refuses_a_tensor_that_differs_from_its_spec(tmp_path):
    wrong = {**ARRAYS, "i8": ARRAYS["i8"].astype(np.int16)}
    with pytest.raises(ExportError, match=r"'i8' is I16\[3\]; I8\[3\] was announced"):
        write_sharded(tmp_path, all_specs(), wrong.__getitem__, 16)
    assert names(tmp_path) == []


def test_write_sharded_leaves_nothing_when_fetch_fails(tmp_path):
    def fetch(name):
        if name == "i8":
            raise ZeroDivisionError
        return ARRAYS[name]

    with pytest.raises(ZeroDivisionError):
        write_sharded(tmp_path, all_specs(), fetch, 16)
    assert names(tmp_path) == []


def test_write_sharded_leaves_nothing_when_the_disk_fills_at_any_sync(tmp_path, monkeypatch):
    real_fsync = os.fsync
    num_syncs = len(plan_shards(all_specs(), 16).shards) + 1
    for failing_call in range(num_syncs):
        calls = iter(range(1000))

        def fsync(descriptor, calls=calls, failing_call=failing_call):
            if next(calls) == failing_call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real_fsync(descriptor)

        monkeypatch.setattr(atomic.os, "fsync", fsync)
        with pytest.raises(ExportError, match="no space left on device"):
            write_sharded(tmp_path, all_specs(), ARRAYS.__getitem__, 16)
        assert names(tmp_path) == []


def test_write_sharded_says_before_writing_that_a_real_disk_is_too_small(small_disk):
    def fetch(_name):
        raise AssertionError("nothing may be computed for a disk that cannot hold it")

    with pytest.raises(ExportError, match="400000 bytes are needed but 262144 are free"):
        write_sharded(small_disk, specs(200_000, 200_000), fetch, 1 << 20)
    assert names(small_disk) == []


def test_write_sharded_cleans_up_a_real_disk_that_fills_meanwhile(small_disk):
    def fetch(name):
        if name == "t0":
            # Somebody else takes space between the check and the write: 106 kB are left for 180.
            (small_disk / "other").write_bytes(bytes(150_000))
        return np.zeros(60_000, np.uint8)

    with pytest.raises(ExportError, match="no space left on device"):
        write_sharded(small_disk, specs(60_000, 60_000, 60_000), fetch, 60_000)
    assert names(small_disk) == ["other"]


def test_write_sharded_reports_a_real_read_only_disk(read_only_disk):
    with pytest.raises(ExportError, match="read-only file system"):
        write_sharded(read_only_disk / "out", all_specs(), ARRAYS.__getitem__, 16)
