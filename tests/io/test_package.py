"""Packages: what is read, and every row of the format's table "Attacks"."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_package import SIDE, VOCAB, Row, TinyPackage, tiny_package

from bcquant.errors import CheckpointError
from bcquant.io.package import open_package, shard_names
from bcquant.io.package_index import CHAT_TEMPLATE, GENERATION, ORIGIN
from bcquant.kernels.reference import half_weight, pack_weight, unpack_weight

Spoil = Callable[[TinyPackage], None]
FEATURES = range(8 * 32, 8 * 40)  # optional ones: unknown bits are ignored


def refusal(path: Path) -> str:
    """What the reader says; fails where it says nothing."""
    with pytest.raises(CheckpointError) as caught, open_package(path):
        pass
    return str(caught.value)


def spoilt(tmp_path: Path, spoil: Spoil, ties_head: bool = True) -> str:
    package = tiny_package(ties_head)
    spoil(package)
    return refusal(package.write(tmp_path))


def sharded() -> TinyPackage:
    package = tiny_package()
    package.num_shards = 3
    for row in package.rows[4:]:
        row.shard = 1
    for row in package.rows[9:]:
        row.shard = 2
    return package


def test_a_package_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = tiny_package()
    with open_package(made.write(tmp_path)) as package:
        package.verify()
        model = package.model
        assert (model.vocab_size, model.head_dim, model.max_positions) == (VOCAB, SIDE, 64)
        assert (model.bos_id, model.pad_id, model.eos_ids) == (1, 0, (2,))
        assert model.ties_head and not model.is_alibi and model.rms_norm_eps == np.float32(1e-6)
        assert len(package.sections) == len(made.rows) and len(package.sha256) == 64
        for row, section in zip(made.rows, package.sections, strict=True):
            assert package.find(row.kind, None if row.layer == 65535 else row.layer) is section
            assert package.data(section) == row.data
        q_proj = package.find(16, 0)
        assert q_proj is not None and q_proj.name == "model.layers.0.self_attn.q_proj.weight"
        assert (package.shapes[q_proj].out_features, package.shapes[q_proj].bits) == (SIDE, 16)
        assert package.text(CHAT_TEMPLATE) == "{{ 'häh' }}"
        assert package.json(GENERATION) == {"temperature": 0.5}
        assert package.json(ORIGIN) is None and package.text(ORIGIN) is None


def test_shards_are_found_beside_the_first(tmp_path: Path) -> None:
    made = sharded()
    with open_package(made.write(tmp_path)) as package:
        package.verify()
        assert {section.shard for section in package.sections} == {0, 1, 2}
        for row, section in zip(made.rows, package.sections, strict=True):
            assert package.data(section) == row.data


def test_names_of_shards() -> None:
    assert shard_names("a.bcq", 1) == ("a.bcq",)
    assert shard_names("a.bcq", 2) == ("a-00001-of-00002.bcq", "a-00002-of-00002.bcq")
    assert shard_names("out", 2)[1] == "out-00002-of-00002.bcq"


def test_a_view_outlives_the_package(tmp_path: Path) -> None:
    package = open_package(tiny_package().write(tmp_path))
    section = package.sections[0]
    view = package.data(section)
    package.close()
    package.close()
    assert unpack_weight(bytes(view)).codes_NK.shape == (VOCAB, SIDE)
    with pytest.raises(CheckpointError, match="read after the package was closed"):
        package.data(section)


def test_texts_that_are_none_are_refused_when_asked_for(tmp_path: Path) -> None:
    made = tiny_package()
    made.row(65).data, made.row(67).data = b"\xff", b"[]"
    with open_package(made.write(tmp_path)) as package:
        with pytest.raises(CheckpointError, match="the chat template is not UTF-8 at byte 0"):
            package.text(CHAT_TEMPLATE)
        with pytest.raises(CheckpointError, match="the generation defaults: JSON list; an object"):
            package.json(GENERATION)


# ---- attack: cut at any byte; bytes appended ----


def test_every_prefix_is_refused(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(CheckpointError):
            open_package(path)


def test_appended_bytes_are_refused(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    with path.open("ab") as file:
        file.write(b"\0")
    assert "its header says" in refusal(path)


def test_a_file_that_goes_on_after_its_last_section_is_refused(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    data = bytearray(path.read_bytes() + bytes(64))
    data[40:48] = len(data).to_bytes(8, "little")
    path.write_bytes(data)
    assert "shard 0 goes on after its last section" in refusal(path)


# ---- attack: any bit of header or index flipped ----


def test_every_flipped_bit_of_header_and_index_is_refused(tmp_path: Path) -> None:
    made = tiny_package()
    path = made.write(tmp_path)
    with path.open("r+b", buffering=0) as file:
        data = file.read()
        for bit in range(8 * (128 + 136 + 64 * len(made.rows))):
            at, flipped = bit // 8, data[bit // 8] ^ (1 << bit % 8)
            os.pwrite(file.fileno(), bytes([flipped]), at)
            if bit in FEATURES:
                with open_package(path) as package:
                    assert package.optional_features == 1 << (bit - FEATURES.start)
            else:
                with pytest.raises(CheckpointError):
                    open_package(path)
            os.pwrite(file.fileno(), data[at : at + 1], at)
    with open_package(path) as package:
        package.verify()


@pytest.mark.parametrize("shard", [1, 2])
def test_every_flipped_bit_of_another_shards_header_is_refused(shard: int, tmp_path: Path) -> None:
    path = sharded().write(tmp_path)
    other = tmp_path / shard_names("tiny.bcq", 3)[shard]
    data = bytearray(other.read_bytes())
    for bit in set(range(8 * 128)) - set(FEATURES):
        data[bit // 8] ^= 1 << bit % 8
        other.write_bytes(data)
        refusal(path)
        data[bit // 8] ^= 1 << bit % 8


# ---- attack: a section's bytes changed ----


def test_a_changed_byte_of_every_section_is_found_by_verify(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    with open_package(path) as package:
        places = [(s.name, s.offset + s.num_bytes - 1) for s in package.sections]
    good = path.read_bytes()
    for name, last in places:
        path.write_bytes(good[:last] + bytes([good[last] ^ 0x40]) + good[last + 1 :])
        with open_package(path) as package:  # its structure is sound
            with pytest.raises(CheckpointError, match="is damaged: its SHA-256") as caught:
                package.verify()
            assert name in str(caught.value)


def test_bytes_between_sections_are_zero(tmp_path: Path) -> None:
    path = tiny_package().write(tmp_path)
    with open_package(path) as package:
        before = package.sections[0].offset - 1
    data = bytearray(path.read_bytes())
    data[before] = 1
    path.write_bytes(data)
    with open_package(path) as package, pytest.raises(CheckpointError, match="are not zero"):
        package.verify()


# ---- attack: numbers of 2^32 - 1 and 2^64 - 1 ----

HUGE = (2**32 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("value", [*HUGE, 0])
@pytest.mark.parametrize("name", ["offset", "num_bytes"])
def test_huge_places_are_refused(name: str, value: int, tmp_path: Path) -> None:
    for position in range(len(tiny_package().rows)):

        def spoil(package: TinyPackage, position: int = position) -> None:
            setattr(package.rows[position], name, value)

        assert "not a sound package" in spoilt(tmp_path, spoil)


@pytest.mark.parametrize("value", HUGE)
def test_an_index_beyond_the_file_is_refused(value: int, tmp_path: Path) -> None:
    assert "does not fit" in spoilt(tmp_path, lambda p: p.header.update(index_bytes=value))


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_another_number_of_sections_is_refused(value: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        package.count = value

    assert f"would hold {value} sections" in spoilt(tmp_path, spoil)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers",
          "num_heads", "num_kv_heads", "head_dim") for value in (0, 2**31, 2**32 - 1)),
        ("num_layers", 4097), ("num_kv_heads", 3), ("head_dim", 24), ("head_dim", 272),
        ("max_positions", 0), ("max_positions", 2**32 - 1),
        ("eps", 0.0), ("eps", -1.0), ("eps", float("nan")), ("eps", float("inf")),
        ("position", 2), ("bits", 2), ("bits", 2**31), ("activations", 3),
        ("begin", VOCAB), ("begin", -2), ("padding", VOCAB), ("padding", -(2**31)),
        ("num_ends", 9), ("num_ends", 2**32 - 1), ("num_ends", 0), ("num_ends", 2),
        ("ends", (VOCAB, -1, -1, -1, -1, -1, -1, -1)), ("ends", (2, 0, -1, -1, -1, -1, -1, -1)),
        ("rest", b"\x01" + bytes(35)),
    ],
)  # fmt: skip
def test_a_model_block_that_cannot_be_is_refused(field: str, value: object, tmp_path: Path) -> None:
    assert "not a sound package" in spoilt(tmp_path, lambda p: p.model.update({field: value}))


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "intermediate_size", "head_dim"])
def test_a_model_block_of_another_model_is_refused(field: str, tmp_path: Path) -> None:
    message = spoilt(tmp_path, lambda p: p.model.update({field: 32}))
    assert "needs" in message or "are needed" in message


# ---- attack: overlap, order, twice, misaligned, a shard that is not there ----


def swap(package: TinyPackage) -> None:
    package.rows[4], package.rows[5] = package.rows[5], package.rows[4]


def repeat(package: TinyPackage) -> None:
    package.rows.insert(5, package.rows[4])


def overlap(package: TinyPackage) -> None:
    package.row(67).offset = _offset(package, 65)


def over_the_index(package: TinyPackage) -> None:
    package.row(1).offset = 0


def misaligned(package: TinyPackage) -> None:
    package.row(67).offset = _offset(package, 67) - 32


def blob_off_its_page(package: TinyPackage) -> None:
    package.row(16, 0).offset = _offset(package, 16, 0) - 64


def backwards(package: TinyPackage) -> None:
    package.num_shards = 2
    package.row(16, 0).shard = 1


def _offset(package: TinyPackage, kind: int, layer: int = 65535) -> int:
    data, row = package.build()[0], package.row(kind, layer)
    at = 128 + 136 + 64 * package.rows.index(row) + 8
    return int.from_bytes(data[at : at + 8], "little")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap, "in the wrong order"),
        (repeat, "lists model.layers.0.self_attn.k_proj.weight twice"),
        (overlap, "the generation defaults overlaps what lies before it"),
        (over_the_index, "model.embed_tokens.weight overlaps what lies before it"),
        (misaligned, "no multiple that it needs"),
        (blob_off_its_page, "no multiple that it needs"),
        (backwards, "lies before the one that it follows"),
        (lambda p: setattr(p.row(67), "shard", 1), "lies in shard 1; there are 1"),
        (lambda p: setattr(p.row(67), "shard", 2**32 - 1), "lies in shard 4294967295"),
        (lambda p: setattr(p.row(67), "rest", 1), "a value where a zero belongs"),
    ],
)
def test_sections_in_wrong_places_are_refused(spoil: Spoil, message: str, tmp_path: Path) -> None:
    assert message in spoilt(tmp_path, spoil)


# ---- attack: a section missing, or one too many ----


@pytest.mark.parametrize("kind", [1, 3, 4, *range(16, 23), 48, 49])
def test_a_missing_section_is_refused(kind: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        package.rows = [row for row in package.rows if row.kind != kind]

    assert "is missing" in spoilt(tmp_path, spoil)


@pytest.mark.parametrize("kind", [50, 51])
def test_one_norm_of_q_and_k_is_refused(kind: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        package.rows.remove(package.row(kind, 0))

    assert "layer 0 has a norm for one of q and k heads" in spoilt(tmp_path, spoil)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [(6, 65535), (22, 1), (22, 65534), (23, 0), (52, 0), (66, 0), (70, 65535), (65535, 65535)],
)
def test_a_section_that_no_model_has_is_refused(kind: int, layer: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        package.rows.append(Row(kind, layer, b"what"))
        package.rows.sort(key=lambda row: (row.kind, row.layer))

    assert "is no part of its model" in spoilt(tmp_path, spoil)


def test_a_head_goes_with_a_model_that_does_not_tie_it(tmp_path: Path) -> None:
    with open_package(tiny_package(ties_head=False).write(tmp_path)) as package:
        assert package.find(2) is not None
    assert "lm_head.weight is no part" in spoilt(tmp_path, lambda p: p.model.update(bits=1), False)
    assert "lm_head.weight is missing" in spoilt(tmp_path, lambda p: p.model.update(bits=0))


# ---- attack: a blob of another shape, a vector of another length ----


@pytest.mark.parametrize("kind", [1, *range(16, 23)])
def test_a_blob_of_another_shape_is_refused(kind: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        row = next(row for row in package.rows if row.kind == kind)
        row.data = pack_weight(half_weight(np.zeros((SIDE, 32), np.float16)))

    assert "[16, 32]; its model needs" in spoilt(tmp_path, spoil)


@pytest.mark.parametrize("kind", [3, 4, 32, 48, 49, 50, 51])
@pytest.mark.parametrize("change", [-4, 4])
def test_a_vector_of_another_length_is_refused(change: int, kind: int, tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        row = next(row for row in package.rows if row.kind == kind)
        row.data = (row.data + bytes(4))[: len(row.data) + change]

    assert "are needed" in spoilt(tmp_path, spoil)


def test_every_flipped_bit_of_a_blobs_header_is_refused_or_found(tmp_path: Path) -> None:
    """The index's digest of the blob is that of the changed one: the blob's own check is asked."""
    made = tiny_package()
    row = made.row(16, 0)
    good = row.data
    for bit in range(8 * 64):
        row.data = (
            good[: bit // 8] + bytes([good[bit // 8] ^ (1 << bit % 8)]) + good[bit // 8 + 1 :]
        )
        assert "q_proj" in refusal(made.write(tmp_path))


def test_a_blob_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    def spoil(package: TinyPackage) -> None:
        package.row(16, 0).data = package.row(16, 0).data[:10]

    assert "no packed weight begins here" in spoilt(tmp_path, spoil)


# ---- attack: shards of different packages, swapped shards ----


def test_shards_of_two_packages_are_refused(tmp_path: Path) -> None:
    path, other = sharded().write(tmp_path), sharded()
    other.row(3).data = bytes(4 * SIDE)
    (tmp_path / "other").mkdir()
    other.write(tmp_path / "other")
    name = shard_names("tiny.bcq", 3)[2]
    os.replace(tmp_path / "other" / name, tmp_path / name)
    assert f"{tmp_path / name}: it is of another package" in refusal(path)


def test_swapped_shards_are_refused(tmp_path: Path) -> None:
    path = sharded().write(tmp_path)
    _, second, third = (tmp_path / name for name in shard_names("tiny.bcq", 3))
    os.replace(second, tmp_path / "x")
    os.replace(third, second)
    os.replace(tmp_path / "x", third)
    assert "it is shard 3 of 3, not 2 of 3" in refusal(path)


def test_a_missing_shard_and_another_name_are_refused(tmp_path: Path) -> None:
    path = sharded().write(tmp_path)
    second = tmp_path / shard_names("tiny.bcq", 3)[1]
    assert "this is shard 2 of 3 of a package; open the first" in refusal(second)
    second.unlink()
    assert f"{second}: the file does not exist" in refusal(path)
    renamed = path.rename(tmp_path / "renamed.bcq")
    assert "give it back its name, NAME-00001-of-00003.bcq" in refusal(renamed)


# ---- attack: a feature or a version of the future ----


@pytest.mark.parametrize("bit", [0, 63])
def test_a_required_feature_is_refused_by_name(bit: int, tmp_path: Path) -> None:
    message = spoilt(tmp_path, lambda p: setattr(p, "required", 1 << bit))
    assert f"it needs features [{bit}]" in message and "update bcquant" in message


def test_another_version_is_refused(tmp_path: Path) -> None:
    assert "it has version 2" in spoilt(tmp_path, lambda p: p.header.update(version=2))


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(400), b"\x89BCQ\n\x1a\n" + bytes(400)])
def test_other_files_are_no_packages(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.bcq"
    path.write_bytes(content)
    message = refusal(path)
    assert "is empty" in message or "it does not begin as a package does" in message
    assert "not a regular file" in refusal(tmp_path)


# ---- NaN and infinite values are data ----


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_data(value: float, tmp_path: Path) -> None:
    made = tiny_package()
    for kind, layer in ((3, 65535), (4, 65535), (48, 0)):
        made.row(kind, layer).data = np.full(
            len(made.row(kind, layer).data) // 4, value, "<f4"
        ).tobytes()
    with open_package(made.write(tmp_path)) as package:
        package.verify()
