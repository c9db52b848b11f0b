from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from bcquant.errors import BcquantError, CheckpointError, ShapeError
from bcquant.io import safetensors as safetensors_file
from bcquant.io.dtypes import RawTensor
from bcquant.io.safetensors import SafetensorsCheckpoint, SafetensorsFile
from bcquant.io.writer import write_safetensors


def write_raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=None, dtype="U8"):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def small(tmp_path):
    tensors = {
        "w": np.arange(12, dtype=np.float32).reshape(4, 3),
        "bits": RawTensor("BF16", (2, 2), np.arange(4, dtype=np.uint16)),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float16),
        "flags": np.array([True, False, True]),
    }
    path = tmp_path / "small.safetensors"
    write_safetensors(path, tensors, {"format": "pt"})
    return path


def test_reads_what_the_reference_library_wrote(tmp_path):
    state = {
        "f32": torch.randn(3, 4),
        "bf16": torch.randn(2, 5).to(torch.bfloat16),
        "f16": torch.randn(6).half(),
        "i64": torch.arange(3),
        "i32": torch.arange(4, dtype=torch.int32).reshape(2, 2),
        "i8": torch.tensor([-128, 127], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "t.safetensors"
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.tensors) == set(state)
        for name, tensor in state.items():
            if name in ("bf16", "f8"):
                tensor = tensor.view(torch.int16 if name == "bf16" else torch.uint8)
            got = file.read(name)
            assert got.shape == tuple(tensor.shape)
            assert got.tobytes() == tensor.numpy().tobytes()


def test_read_returns_a_fresh_writable_array(small):
    with SafetensorsFile(small) as file:
        first = file.read("w")
        first[:] = 0
        assert file.read("w")[3, 2] == 11


def test_read_returns_row_ranges(small):
    with SafetensorsFile(small) as file:
        np.testing.assert_array_equal(file.read("w", (1, 3)), [[3, 4, 5], [6, 7, 8]])
        assert file.read("w", (4, 4)).shape == (0, 3)


@pytest.mark.parametrize("rows", [(-1, 2), (3, 2), (0, 5), (5, 5)])
def test_read_refuses_rows_outside_the_tensor(small, rows):
    with SafetensorsFile(small) as file, pytest.raises(ShapeError, match="it has 4"):
        file.read("w", rows)


def test_read_refuses_rows_of_a_scalar(small):
    with SafetensorsFile(small) as file, pytest.raises(ShapeError, match="a scalar"):
        file.read("scalar", (0, 1))


def test_read_names_the_nearest_tensor(small):
    with SafetensorsFile(small) as file, pytest.raises(CheckpointError, match="mean 'scalar'"):
        file.read("scaler")


def test_bool_bytes_other_than_0_and_1_become_true(tmp_path):
    path = write_raw(tmp_path / "f", {"b": entry(0, 3, dtype="BOOL")}, b"\x00\x01\xc8")
    with SafetensorsFile(path) as file:
        assert file.read("b").tobytes() == b"\x00\x01\x01"


def test_every_truncation_is_refused(small, tmp_path):
    data = small.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"cut.safetensors"):
            SafetensorsFile(cut)


def test_trailing_bytes_are_refused(small):
    small.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="the tensors end at byte"):
        SafetensorsFile(small)


def test_no_bit_flip_of_the_header_escapes_as_another_error(small, tmp_path):
    data = bytearray(small.read_bytes())
    header_end = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "flipped.safetensors"
    refused = 0
    for bit in range(header_end * 8):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            with SafetensorsFile(path) as file:
                for name in file.tensors:
                    file.read(name)
        except BcquantError:
            refused += 1
    # The rest renames a tensor or changes a dtype to another of the same width.
    assert refused > header_end * 4


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 3), "b": entry(2, 4)}, "'b' begins at byte .* an overlap"),
        ({"a": entry(0, 2), "b": entry(0, 2), "c": entry(2, 4)}, "an overlap"),
        ({"a": entry(0, 1), "b": entry(2, 4)}, "'b' begins at byte .* a gap"),
        ({"a": entry(1, 4)}, "a gap"),
        ({"a": entry(0, 3)}, "the tensors end at byte"),
        ({}, "the tensors end at byte"),
        ({"a": entry(0, 5)}, "'a' ends at byte .* but the file has"),
        ({"a": entry(0, 4, [3])}, "needs 3 bytes but its offsets span 4"),
        ({"a": entry(0, 4, [2**62, 4], "F32")}, "too large to address"),
        ({"a": entry(0, 0, [0, 2**61, 8], "F32")}, "too large to address"),
        ({"a": entry(0, 4, [1] * 1000 + [4])}, "at most 32"),
        ({"a": entry(0, 4, [-4])}, "integers >= 0"),
        ({"a": entry(0, 4, [4.0])}, "integers >= 0"),
        ({"a": entry(0, 4, [True, 4])}, "integers >= 0"),
        ({"a": entry(0, 4, "4")}, "integers >= 0"),
        ({"a": entry(0, 4, dtype="F4")}, "dtype is 'F4'"),
        ({"a": entry(0, 4, dtype=["U8"])}, "dtype is"),
        ({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, r"\[begin, end\] is needed"),
        ({"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}}, r"\[begin, end\] is needed"),
        ({"a": {**entry(0, 4), "data_offsets": [0, 10**30]}}, r"\[begin, end\] is needed"),
        ({"a": {**entry(0, 4), "extra": 1}}, "exactly dtype, shape and data_offsets"),
        ({"a": {"dtype": "U8", "shape": [4]}}, "exactly dtype, shape and data_offsets"),
        ({"a": None}, "exactly dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}, "a": entry(0, 4)}, "not a map of strings"),
        ({"__metadata__": ["a"], "a": entry(0, 4)}, "not a map of strings"),
        (b'{"a":' + json.dumps(entry(0, 4)).encode() + b',"a":{}}', "'a' appears twice"),
        (b'{"__metadata__":{"k":"1","k":"2"}}', "'k' appears twice"),
        (b"[" * 100_000, "does not begin with '{'"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a\xff":1}', "not UTF-8"),
        (b"{}x", "not valid JSON"),
        (b" {}", "does not begin with '{'"),
    ],
)
def test_a_broken_header_is_refused(tmp_path, header, message):
    path = write_raw(tmp_path / "broken.safetensors", header, b"\1\2\3\4")
    with pytest.raises(CheckpointError, match=message):
        SafetensorsFile(path)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**8 + 1, 10**8, 1000])
def test_a_huge_header_length_is_refused_before_it_is_read(tmp_path, length):
    path = write_raw(tmp_path / "huge.safetensors", {"a": entry(0, 4)}, b"1234", length)
    with pytest.raises(CheckpointError, match=f"the header claims {length} bytes"):
        SafetensorsFile(path)


def test_a_header_length_of_zero_is_refused(tmp_path):
    path = write_raw(tmp_path / "zero.safetensors", {"a": entry(0, 4)}, b"1234", 0)
    with pytest.raises(CheckpointError, match="does not begin"):
        SafetensorsFile(path)


def test_a_long_name_does_not_fill_the_error_message(tmp_path):
    path = write_raw(tmp_path / "long.safetensors", {"n" * 100_000: entry(0, 5)}, b"1234")
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 500


def test_random_bytes_never_escape_as_another_error(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "noise.safetensors"
    for _ in range(300):
        noise = rng.integers(0, 256, rng.integers(1, 200), dtype=np.uint8).tobytes()
        path.write_bytes(len(noise).to_bytes(8, "little") + b"{" + noise)
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


def test_checkpoint_closes_its_files_when_a_shard_is_broken(small, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(small.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"broken.safetensors"):
        SafetensorsCheckpoint(tmp_path, [small, broken], None, {})


def test_header_limit_is_that_of_the_reference_library():
    assert safetensors_file.MAX_HEADER_BYTES == 100_000_000


def test_reading_a_large_file_does_not_grow_the_resident_set(tmp_path):
    # 256 MB in tensors of 16 MB, read one by one: only the largest may be resident.
    path = tmp_path / "large.safetensors"
    block = np.ones((4, 1 << 20), np.float32)
    write_safetensors(path, {f"t{i}": block for i in range(16)})
    code = (
        "import resource, sys\n"
        "from bcquant.io.safetensors import SafetensorsFile\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with SafetensorsFile(sys.argv[1]) as file:\n"
        "    file.read('t0'); before = peak()\n"
        "    total = sum(float(file.read(name).sum()) for name in file.tensors)\n"
        "print(peak() - before, total)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    grown_kb, total = done.stdout.split()
    assert float(total) == 16 * block.size
    # One tensor (16 MB) and one copy chunk (16 MB) may be alive at once, plus 16 MB of slack;
    # without dropping pages it would be 256 MB.
    assert int(grown_kb) < 48 << 10
