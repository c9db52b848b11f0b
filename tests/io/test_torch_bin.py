from __future__ import annotations

import collections
import json
import os
import pickle
import shlex
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from bcquant.errors import BcquantError, CheckpointError, ShapeError
from bcquant.io import torch_bin
from bcquant.io.checkpoint import open_checkpoint


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    return {
        "f32": base,
        "view": base[2:4],
        "transposed": base.t(),
        "bf16": base.to(torch.bfloat16),
        "f16": base.half(),
        "i64": torch.arange(5),
        "i32": torch.arange(4, dtype=torch.int32),
        "i8": torch.tensor([-1, 1], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "f8": base.to(torch.float8_e5m2),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.fixture
def file(tmp_path, state):
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    return path


def repack(path, change, **options):
    """Rewrite the zip entries of a torch file: change(name, data) -> data or None."""
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in entries:
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


def test_every_dtype_reads_back(file, state):
    with open_checkpoint(file) as opened:
        assert opened.kind == "torch_bin"
        assert list(opened.tensors) == list(state)
        for name, tensor in state.items():
            got = opened.read(name)
            want = tensor.detach()
            assert got.shape == tuple(want.shape)
            assert opened.tensors[name].shape == got.shape
            if name in ("bf16", "f8"):
                want = want.view(torch.int16 if name == "bf16" else torch.uint8)
            assert got.tobytes() == want.contiguous().numpy().tobytes()
        assert opened.tensors["bf16"].dtype == "BF16"
        assert opened.read("bf16").dtype == np.uint16


def test_read_f32_and_rows(file, state):
    with open_checkpoint(file) as opened:
        np.testing.assert_array_equal(opened.read_f32("bf16", (1, 4)), state["bf16"][1:4].float())
        np.testing.assert_array_equal(opened.read("transposed", (1, 3)), state["f32"].t()[1:3])
        with pytest.raises(ShapeError, match="it has 6"):
            opened.read("f32", (0, 7))


def test_reads_are_fresh_arrays(file, state):
    with open_checkpoint(file) as opened:
        opened.read("f32")[:] = 0
        np.testing.assert_array_equal(opened.read("f32"), state["f32"])


def test_remapping_in_the_middle_of_a_tensor_changes_nothing(file, state, monkeypatch):
    monkeypatch.setattr(torch_bin, "_REMAP_BYTES", 20)
    with open_checkpoint(file) as opened:
        for _ in range(2):
            np.testing.assert_array_equal(opened.read("f32"), state["f32"])
            np.testing.assert_array_equal(opened.read("transposed"), state["transposed"])


def test_a_sharded_folder_is_opened_by_its_index(tmp_path):
    torch.save({"a": torch.ones(2), "extra": torch.ones(1)}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-2.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as opened:
        assert list(opened.tensors) == ["a", "b"]
        np.testing.assert_array_equal(opened.read("b"), np.zeros(3, np.float32))
    index["weight_map"]["ghost"] = "pytorch_model-2.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"the index puts 'ghost' in pytorch_model-2.bin"):
        open_checkpoint(tmp_path)


class Evil:
    """Unpickles into a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Foreign:
    """A class that torch does not know."""


def test_a_pickle_of_a_foreign_class_is_refused(tmp_path):
    torch.save({"w": torch.ones(1), "x": Foreign()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"would run '.*Foreign', which is not weights"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("as_value", [True, False])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path, as_value):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    evil = Evil(f"touch {trace}")
    torch.save({"w": torch.ones(1), "x": evil} if as_value else evil, path)
    with pytest.raises(CheckpointError, match=r"would run '(posix|os|nt)\.system'"):
        open_checkpoint(path)
    assert not trace.exists()


def test_a_malicious_plain_pickle_is_refused_and_never_runs(tmp_path):
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Evil(f"touch {trace}")))
    with pytest.raises(CheckpointError, match="not a torch zip file"):
        open_checkpoint(path)
    assert not trace.exists()


def test_the_old_format_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "it's $HOME.bin"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="convert it once: python -c") as caught:
        open_checkpoint(path)
    command = shlex.split(str(caught.value).split("convert it once: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    with open_checkpoint(path) as opened:
        np.testing.assert_array_equal(opened.read("w"), np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": {"w": torch.ones(1)}}, "'model' is a dict, not a tensor"),
        ({"step": 3}, "'step' is a int, not a tensor"),
        ({7: torch.ones(1)}, "a tensor is named 7"),
        ([torch.ones(1)], "holds list"),
        ({}, "holds nothing"),
        ({"w": torch.ones(2, 2).to_sparse()}, "not dense"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "'w' is torch.complex64"),
        ({"w": torch.ones(1).expand(1 << 40)}, "more than the .* bytes of the file"),
        ({"w": torch.ones(1 << 40, device="meta")}, "not dense|more than|cannot be unpickled"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(tmp_path, value, message):
    path = tmp_path / "pytorch_model.bin"
    torch.save(value, path)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_an_ordered_dict_with_attributes_is_read(tmp_path):
    model = torch.nn.Linear(2, 3)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as opened:
        assert isinstance(model.state_dict(), collections.OrderedDict)
        assert set(opened.tensors) == {"weight", "bias"}


def test_compressed_entries_are_refused(file):
    repack(file, lambda _name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed zip entries"):
        open_checkpoint(file)


def test_an_archive_without_a_pickle_is_refused(file):
    repack(file, lambda name, data: None if name.endswith("data.pkl") else data)
    with pytest.raises(CheckpointError, match=r"0 data.pkl entries"):
        open_checkpoint(file)


def test_an_archive_without_a_storage_is_refused(file):
    repack(file, lambda name, data: None if name.endswith("/data/0") else data)
    with pytest.raises(CheckpointError, match="cannot be unpickled as weights"):
        open_checkpoint(file)


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(1)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        open_checkpoint(path)


def test_a_huge_pickle_is_refused(file, monkeypatch):
    monkeypatch.setattr(torch_bin, "MAX_PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match="of at most 100 bytes"):
        open_checkpoint(file)


def test_a_storage_that_claims_more_than_the_file_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(300)}, path)

    def grow(name, data):
        # 300 as BININT2 in the storage's and the tensor's size.
        return data.replace(b"M\x2c\x01", b"J\xff\xff\xff\x7f") if name.endswith(".pkl") else data

    repack(path, grow)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_a_file_that_changes_size_after_opening_is_reported(file):
    with open_checkpoint(file) as opened:
        os.truncate(file, 100)
        with pytest.raises(CheckpointError, match="while it was in use"):
            opened.read("f32")


def test_reading_after_close_is_refused(file):
    opened = open_checkpoint(file)
    opened.close()
    opened.close()
    with pytest.raises(CheckpointError, match="closed"):
        opened.read("f32")


def test_truncations_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(3)}, path)
    data = path.read_bytes()
    # The zip directory is at the end, so no prefix is complete; all short ones, then every 7th.
    for size in [*range(64), *range(64, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
            open_checkpoint(path)


def test_no_bit_flip_escapes_as_another_error(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.arange(3.0), "v": torch.ones(2, 2, dtype=torch.bfloat16)}, path)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.choice(len(data) * 8, 600, replace=False):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            with open_checkpoint(path) as opened:
                for name in opened.tensors:
                    opened.read(name)
        except BcquantError:
            refused += 1
    # Most of the file is padding and values, where a flip is legal.
    assert refused > 50


def test_reading_a_large_file_does_not_grow_the_resident_set(tmp_path):
    # 256 MB in tensors of 16 MB, read one by one.
    path = tmp_path / "pytorch_model.bin"
    torch.save({f"t{i}": torch.ones(4, 1 << 20) for i in range(16)}, path)
    code = (
        "import resource, sys, torch\n"
        "from bcquant.io.checkpoint import open_checkpoint\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with open_checkpoint(sys.argv[1]) as opened:\n"
        "    opened.read('t0'); before = peak()\n"
        "    total = sum(float(opened.read(name)[0, 0]) for name in opened.tensors)\n"
        "print(peak() - before, total)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    grown_kb, total = done.stdout.split()
    assert float(total) == 16
    # 64 MB of mapped pages before they are dropped, one tensor (16 MB), 32 MB of slack; without
    # dropping them it would be 256 MB.
    assert int(grown_kb) < 112 << 10
