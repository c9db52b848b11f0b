"""Packages in C++: what a sound one says, and every attack of docs/formats/bcq_package_v1.md."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

import mobile_api as api
import pytest
from factory import make_tiny
from mobile_api import Runtime
from mobile_build import MOBILE, RELEASE, SANITIZED, library, program, run

Export = Callable[..., Path]
HEADER, TABLE, ROW = 128, 264, 64
PAGE = 16384


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> Path:
    """One layer of one head with biases, windows and an untied head."""
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(
        "qwen2", folder / "source", "F16", hidden_size=32, intermediate_size=32, vocab_size=32,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        use_sliding_window=True, max_window_layers=0,
    )  # fmt: skip
    return export_mobile(folder / "source", folder / "tiny.bcq")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> list[Path]:
    """The first of at least three files of 1 MB, and the others."""
    folder = tmp_path_factory.mktemp("shards")
    make_tiny("llama", folder / "source", "F16", vocab_size=7000, intermediate_size=4096)
    export_mobile(folder / "source", folder / "m.bcq", split_mb=1)
    found = sorted(folder.glob("m-*.bcq"))
    assert len(found) >= 3
    return found


def refused(call: Callable[[], object], status: int, about: str) -> None:
    with pytest.raises(api.RuntimeFailure, match=about) as caught:
        call()
    assert caught.value.status == status


def signed(data: bytearray) -> bytes:
    """The index's digest made anew, as a hostile writer does."""
    (index_bytes,) = struct.unpack_from("<Q", data, 56)
    data[64:96] = hashlib.sha256(data[HEADER : HEADER + index_bytes]).digest()
    return bytes(data)


def rows(data: bytes) -> list[tuple[int, int]]:
    """(kind, offset of the row in the file) of every section."""
    (num,) = struct.unpack_from("<I", data, TABLE - 8)
    offsets = [TABLE + ROW * i for i in range(num)]
    return [(int(struct.unpack_from("<H", data, at)[0]), at) for at in offsets]


def test_a_package_says_what_the_model_is(runtime: Runtime, tiny: Path) -> None:
    package = runtime.open(tiny)
    info = package.info()
    assert (info.vocab_size, info.hidden_size, info.intermediate_size) == (32, 32, 32)
    assert (info.num_layers, info.num_heads, info.num_kv_heads, info.head_dim) == (1, 2, 1, 16)
    assert (info.max_positions, info.is_alibi, info.ties_head, info.activations) == (256, 0, 0, 0)
    assert (info.bos, info.pad, info.num_eos, list(info.eos)) == (1, 0, 1, [2] + [-1] * 7)
    assert info.eps == pytest.approx(1e-5)
    origin = package.section(69)
    assert origin is not None and origin.startswith(b"{")
    assert package.section(64) is None
    refused(lambda: package.section(16), api.BAD_ARGUMENT, "Kind 16")
    num = package.verify(0)
    assert [package.verify(i) for i in range(num)] == [num] * num
    refused(lambda: package.verify(num), api.BAD_ARGUMENT, "not one of")
    package.close()


def test_memory_is_opened_as_the_file_is(runtime: Runtime, tiny: Path, shards: list[Path]) -> None:
    for files in ([tiny], shards):
        package = runtime.open_memory([path.read_bytes() for path in files])
        from_file = runtime.open(files[0])
        assert bytes(package.info()) == bytes(from_file.info())
        package.close()
        from_file.close()


def test_shards_give_the_logits_of_one_file(
    tmp_path: Path, runtime: Runtime, shards: list[Path], export_mobile: Export
) -> None:
    whole = export_mobile(shards[0].parent / "source", tmp_path / "whole.bcq")
    logits = []
    for path in (whole, shards[0]):
        package = runtime.open(path)
        model = package.model(api.options())
        session = model.session(8)
        logits.append(session.append([1, 5, 9]).tobytes())
        session.destroy()
        model.destroy()
        package.close()
    assert logits[0] == logits[1]


def test_shards_of_other_packages_and_swapped_ones_are_refused(
    tmp_path: Path, runtime: Runtime, shards: list[Path]
) -> None:
    data = [path.read_bytes() for path in shards]
    refused(lambda: runtime.open(shards[1]), api.BAD_ARGUMENT, "open the first")
    swapped = [data[0], data[2], data[1], *data[3:]]
    refused(lambda: runtime.open_memory(swapped), api.BAD_BLOB, "is not shard 1")
    refused(lambda: runtime.open_memory(data[:-1]), api.BAD_BLOB, "shards begins with")
    other = bytearray(data[1])
    other[70] ^= 1
    mixed = [data[0], bytes(other), *data[2:]]
    refused(lambda: runtime.open_memory(mixed), api.BAD_BLOB, "is not shard 1")
    for path, content in zip(shards[:-1], data, strict=False):
        (tmp_path / path.name).write_bytes(content)
    refused(lambda: runtime.open(tmp_path / shards[0].name), api.BAD_ARGUMENT, "cannot be opened")
    (tmp_path / "renamed.bcq").write_bytes(data[0])
    refused(lambda: runtime.open(tmp_path / "renamed.bcq"), api.BAD_ARGUMENT, "must end in")


def test_what_is_no_package_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    refused(lambda: runtime.open(tmp_path / "none.bcq"), api.BAD_ARGUMENT, "No such file")
    refused(lambda: runtime.open(tmp_path), api.BAD_ARGUMENT, "not a file")
    path = tmp_path / "m.bcq"
    for content, about in ((b"", "is empty"), (b"GGUF" * 99, "not a bcq"), (b"\x89BCQ", "not a")):
        path.write_bytes(content)
        refused(lambda: runtime.open(path), api.BAD_BLOB, about)


def test_versions_and_features_of_the_future_are_named(runtime: Runtime, tiny: Path) -> None:
    for offset, value, about in ((8, 2, "version 2"), (24, 4, "features 0x4")):
        data = bytearray(tiny.read_bytes())
        data[offset] = value
        refused(lambda data=data: runtime.open_memory([data]), api.UNSUPPORTED, about)
    data = bytearray(tiny.read_bytes())
    data[32:40] = b"\xff" * 8  # optional ones
    runtime.open_memory([bytes(data)]).close()


def test_a_damaged_section_is_named(runtime: Runtime, tiny: Path) -> None:
    data = bytearray(tiny.read_bytes())
    at = dict(rows(data))[17]
    (offset,) = struct.unpack_from("<Q", data, at + 8)
    data[offset + 100] ^= 1
    refused(lambda: runtime.open_memory([data]), api.BAD_BLOB, "'k' of layer 0 is damaged")
    package = runtime.open_memory([bytes(data)], api.STRUCTURE)
    index = [kind for kind, _ in rows(data)].index(17)
    refused(lambda: package.verify(index), api.BAD_BLOB, "'k' of layer 0")
    package.close()


def test_bytes_between_sections_are_refused(runtime: Runtime, tiny: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[PAGE - 1] = 1  # before the first blob
    runtime.open_memory([bytes(data)], api.STRUCTURE).close()
    refused(lambda: runtime.open_memory([data]), api.BAD_BLOB, "belong to no section")


def test_a_file_that_goes_on_behind_its_last_section_is_refused(
    runtime: Runtime, tiny: Path, shards: list[Path]
) -> None:
    for files in ([tiny], shards):
        for longer in range(len(files)):
            data = [bytearray(path.read_bytes()) for path in files]
            data[longer] += bytes(64)
            struct.pack_into("<Q", data[longer], 40, len(data[longer]))
            refused(
                lambda data=data: runtime.open_memory(list(map(bytes, data)), api.STRUCTURE),
                api.BAD_BLOB, "goes on behind its last section",
            )  # fmt: skip


# What a hostile writer changes in a package that is otherwise sound, and what is said.
EDITS: dict[str, tuple[int | None, int, bytes, str]] = {
    # (kind of the row or None for the file, offset, bytes, about)
    "kv heads that do not divide": (None, HEADER + 20, b"\x03", "out of range"),
    "head size": (None, HEADER + 24, b"\x11", "out of range"),
    "positions that are no int32": (None, HEADER + 28, b"\x00\x00\x00\x80", "out of range"),
    "no epsilon": (None, HEADER + 32, struct.pack("<f", float("nan")), "rms_norm_eps"),
    "another position": (None, HEADER + 36, b"\x02", "does not exist"),
    "end token": (None, HEADER + 60, struct.pack("<i", 32), "token is not"),
    "begin token": (None, HEADER + 48, struct.pack("<i", -2), "token is not"),
    "nine end tokens": (None, HEADER + 56, b"\x09", "token is not"),
    "two layers": (None, HEADER + 12, b"\x02", "Section 'windows' has 4 bytes; 8 are"),
    "tied": (None, HEADER + 40, b"\x01", "has a head"),
    "more sections": (None, TABLE - 8, b"\xff\xff\xff\xff", "does not suit"),
    "no such kind": (16, 0, b"\x0f\x00", "kind 15"),
    "twice": (17, 0, b"\x10\x00", "there twice"),
    "layer": (16, 2, b"\x01\x00", "has 1 layers"),
    "no layer": (16, 2, b"\xff\xff", "has 1 layers"),
    "a shard that is not there": (22, 4, b"\x01", "shard 1 of 1"),
    "misaligned": (16, 8, struct.pack("<Q", PAGE + 64), "not aligned"),
    "over the one before": (17, 8, struct.pack("<Q", PAGE), "out of order"),
    "into the header": (1, 8, bytes(8), "out of order"),
    "far beyond": (69, 8, struct.pack("<Q", 2**64 - 64), "beyond its file"),
    "size that wraps": (69, 16, struct.pack("<Q", 2**64 - 1), "beyond its file"),
    "empty": (69, 16, bytes(8), "0 bytes; 1 are"),
    "a norm of another length": (48, 16, struct.pack("<Q", 64), "128 are needed"),
    "a bias of another length": (33, 16, struct.pack("<Q", 128), "64 are needed"),
    "something in a row's end": (16, 63, b"\x01", "unknown"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_hostile_index_is_refused(runtime: Runtime, tiny: Path, name: str) -> None:
    kind, offset, value, about = EDITS[name]
    data = bytearray(tiny.read_bytes())
    at = offset + (0 if kind is None else dict(rows(data))[kind])
    data[at : at + len(value)] = value
    status = api.UNSUPPORTED if name == "no such kind" else api.BAD_BLOB
    refused(lambda: runtime.open_memory([signed(data)], api.STRUCTURE), status, about)


def test_every_section_that_a_model_needs_is_missed(runtime: Runtime, tiny: Path) -> None:
    data = tiny.read_bytes()
    optional = {5, 32, 33, 34, 35, 36, 37, 38, 64, 65, 66, 67, 68, 69}
    for kind, at in rows(data):
        # The row goes and the index is one row shorter; its last place becomes a gap.
        cut = bytearray(data)
        (index_bytes,) = struct.unpack_from("<Q", cut, 56)
        end = HEADER + index_bytes
        cut[at : end - ROW] = cut[at + ROW : end]
        cut[end - ROW : end] = bytes(ROW)
        struct.pack_into("<Q", cut, 56, index_bytes - ROW)
        struct.pack_into("<I", cut, TABLE - 8, (index_bytes - TABLE + HEADER) // ROW - 1)
        content = signed(cut)
        if kind == rows(data)[-1][0]:
            refused(
                lambda content=content: runtime.open_memory([content], api.STRUCTURE),
                api.BAD_BLOB, "goes on behind its last section",
            )  # fmt: skip
        elif kind in optional:
            runtime.open_memory([content], api.STRUCTURE).close()
        else:
            refused(
                lambda content=content: runtime.open_memory([content], api.STRUCTURE),
                api.BAD_BLOB, "is missing",
            )  # fmt: skip


def test_a_blob_of_another_shape_is_refused(runtime: Runtime, tiny: Path) -> None:
    data = bytearray(tiny.read_bytes())
    at = dict(rows(data))
    offsets = [struct.unpack_from("<Q", data, at[kind] + 8)[0] for kind in (16, 17)]
    sizes = [struct.unpack_from("<Q", data, at[kind] + 16)[0] for kind in (16, 17)]
    data[offsets[0] : offsets[0] + sizes[1]] = data[offsets[1] : offsets[1] + sizes[1]]
    struct.pack_into("<Q", data, at[16] + 16, sizes[1])  # q is a copy of k, which has one head
    package = runtime.open_memory([signed(data)], api.STRUCTURE)
    for call in (lambda: package.model(api.options()), lambda: package.plan(api.options(), 8)):
        refused(call, api.BAD_BLOB, r"'q' of layer 0 is \[16, 32\]; the model needs \[32, 32\]")
    package.close()


def test_hostile_packages_pass_the_sanitizers(tmp_path: Path, tiny: Path) -> None:
    made = program(MOBILE / "tests/package_attacks.cpp", tmp_path, SANITIZED)
    assert run([made, tiny]).endswith("package_attacks: all passed\n")


def test_systems_without_mmap_read_the_file(tmp_path: Path, tiny: Path) -> None:
    reading = Runtime(library(tmp_path, flags=(*RELEASE, "-DBCQ_NO_MMAP")))
    package = reading.open(tiny)
    assert package.info().vocab_size == 32
    package.close()
    assert reading.memory_in_use() == 0
    refused(lambda: reading.open(tmp_path / "none.bcq"), api.BAD_ARGUMENT, "No such file")
    (tmp_path / "empty.bcq").write_bytes(b"")
    refused(lambda: reading.open(tmp_path / "empty.bcq"), api.BAD_BLOB, "is empty")


def test_big_cores_are_counted(tmp_path: Path, runtime: Runtime) -> None:
    num_big_cores = runtime.lib._ZN3bcq13num_big_coresEPKc
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one core; two are needed to tell them apart")

    def count(name: str, values: list[str]) -> int:
        for cpu, value in zip(allowed, values, strict=True):
            path = tmp_path / f"devices/system/cpu/cpu{cpu}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(value + "\n")
        return int(num_big_cores(str(tmp_path).encode()))

    num = len(allowed)
    assert num_big_cores(str(tmp_path).encode()) == min(256, num)  # nothing is told
    clocks = "cpufreq/cpuinfo_max_freq"
    assert count(clocks, ["2000000"] * num) == min(256, num)
    assert count(clocks, ["3000000", *["2000000"] * (num - 1)]) == 1
    # Capacities say more than clocks: a small core may run as fast as a big one.
    assert count("cpu_capacity", ["1024", *["520"] * (num - 1)]) == min(256, num)
    assert count("cpu_capacity", ["1024", *["500"] * (num - 1)]) == 1
    assert count("cpu_capacity", ["1024"] * num) == min(256, num)
    assert count("topology/thread_siblings_list", [f"{allowed[0]}-{allowed[-1]}"] * num) == 1
