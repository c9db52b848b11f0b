from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bcquant.errors import CheckpointError, ShapeError
from bcquant.io import checkpoint, reader
from bcquant.io.checkpoint import TensorInfo, f32_to_bf16, open_checkpoint
from bcquant.io.writer import RawTensor, spec_of, write_safetensors, write_sharded

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((6, 5)).astype(np.float32)
TENSORS = {
    "f32": FLOATS,
    "f16": FLOATS.astype(np.float16),
    "bf16": RawTensor("BF16", (6, 5), f32_to_bf16(FLOATS)),
    "f64": FLOATS.astype(np.float64),
    "ids": np.arange(3, dtype=np.int64),
    "scalar": RawTensor("BF16", (), np.array([0x3F80], np.uint16)),
}


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "model"
    specs = [spec_of(name, tensor) for name, tensor in TENSORS.items()]
    write_sharded(folder, specs, TENSORS.__getitem__, 200)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_a_sharded_folder_is_opened_by_its_index(sharded):
    with open_checkpoint(sharded) as opened:
        assert opened.kind == "safetensors"
        assert opened.path == sharded
        assert opened.config == {"model_type": "llama"}
        assert opened.metadata == {}
        assert opened.tensors["bf16"] == TensorInfo("bf16", "BF16", (6, 5))
        np.testing.assert_array_equal(opened.read("f16", (1, 3)), TENSORS["f16"][1:3])
        assert opened.read("bf16").dtype == np.uint16


def test_a_string_path_and_a_single_file_are_opened(sharded):
    write_safetensors(sharded / "one.safetensors", {"a": FLOATS}, {})
    with open_checkpoint(str(sharded / "one.safetensors")) as opened:
        assert opened.config == {"model_type": "llama"}
        np.testing.assert_array_equal(opened.read("a"), FLOATS)


def test_read_f32_converts_every_float_type(sharded):
    with open_checkpoint(sharded) as opened:
        # Half an ulp of an 8-bit (bf16) or 11-bit (f16) significand, relative.
        for name, bound in (("f32", 0), ("f64", 0), ("f16", 2**-11), ("bf16", 2**-8)):
            values = opened.read_f32(name)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, FLOATS, rtol=bound, atol=0)
            np.testing.assert_array_equal(opened.read_f32(name, (2, 5)), values[2:5])
        assert opened.read_f32("scalar") == np.float32(1)


def test_read_f32_in_pieces_equals_read_f32_at_once(sharded, monkeypatch):
    with open_checkpoint(sharded) as opened:
        whole = opened.read_f32("bf16")
        monkeypatch.setattr(reader, "_CONVERT_BYTES", 45)
        np.testing.assert_array_equal(opened.read_f32("bf16"), whole)


def test_read_f32_returns_a_fresh_array(sharded):
    with open_checkpoint(sharded) as opened:
        opened.read_f32("f32")[:] = 0
        np.testing.assert_array_equal(opened.read_f32("f32"), FLOATS)


def test_read_f32_refuses_integers_and_bad_rows(sharded):
    with open_checkpoint(sharded) as opened:
        with pytest.raises(CheckpointError, match="'ids' is I64; a float type"):
            opened.read_f32("ids")
        with pytest.raises(ShapeError, match="rows 0 to 7"):
            opened.read_f32("bf16", (0, 7))


def test_an_unknown_tensor_is_answered_with_the_nearest(sharded):
    with open_checkpoint(sharded) as opened:
        for read in (opened.read, opened.read_f32):
            with pytest.raises(CheckpointError, match="no tensor 'bf61'; did you mean 'bf16'"):
                read("bf61")
        with pytest.raises(CheckpointError, match="it has 6 others"):
            opened.read("xyz" * 20)


def test_reading_after_close_is_refused(sharded):
    opened = open_checkpoint(sharded)
    opened.close()
    with pytest.raises(CheckpointError, match="closed"):
        opened.read("f32")


def test_a_missing_shard_is_named(sharded):
    next(iter(sorted(sharded.glob("model-00002*")))).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 4 shards are missing, 'model-00002-of"):
        open_checkpoint(sharded)


def test_a_truncated_shard_is_named(sharded):
    shard = next(iter(sorted(sharded.glob("model-00002*"))))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004.safetensors: .* but the file"):
        open_checkpoint(sharded)


def test_an_index_that_names_an_absent_tensor_is_refused(sharded):
    edit_index(sharded, lambda i: i["weight_map"].update(ghost=i["weight_map"]["f32"]))
    with pytest.raises(CheckpointError, match="the index puts 'ghost' in model-0000"):
        open_checkpoint(sharded)


def test_tensors_that_the_index_omits_are_not_offered(sharded):
    edit_index(sharded, lambda i: i["weight_map"].pop("ids"))
    with open_checkpoint(sharded) as opened:
        assert "ids" not in opened.tensors


@pytest.mark.parametrize(
    "name",
    [
        "../evil.safetensors",
        "/etc/evil.safetensors",
        "sub/evil.safetensors",
        "c:\\evil.safetensors",
        "nul\0.safetensors",
        "config.json",
        "",
        7,
        None,
    ],
)
def test_an_index_may_only_name_plain_weight_files(sharded, name):
    edit_index(sharded, lambda i: i["weight_map"].update(f32=name))
    with pytest.raises(CheckpointError, match="'f32' is mapped to"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(sharded, weight_map):
    edit_index(sharded, lambda i: i.update(weight_map=weight_map))
    with pytest.raises(CheckpointError, match="weight_map is missing or empty"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {"a": 1, "a": 1}}'])
def test_a_broken_index_is_named(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        open_checkpoint(sharded)


def test_too_many_shards_are_refused(sharded):
    def many(index):
        index["weight_map"] = {str(i): f"{i}.safetensors" for i in range(10_001)}

    edit_index(sharded, many)
    with pytest.raises(CheckpointError, match="10001 shards; at most 10000"):
        open_checkpoint(sharded)


def test_a_broken_config_is_named(sharded):
    (sharded / "config.json").write_text('{"hidden_size": 1, "hidden_size": 2}')
    with pytest.raises(CheckpointError, match=r"config\.json: the key 'hidden_size' appears twice"):
        open_checkpoint(sharded)


def test_a_folder_without_config_has_an_empty_one(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"a": FLOATS}, {})
    with open_checkpoint(tmp_path) as opened:
        assert opened.config == {}


def test_safetensors_is_preferred_to_bin(sharded):
    torch.save({"other": torch.zeros(1)}, sharded / "pytorch_model.bin")
    with open_checkpoint(sharded) as opened:
        assert opened.kind == "safetensors"


def test_bin_is_opened_when_there_is_no_safetensors(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    with open_checkpoint(tmp_path) as opened:
        assert opened.kind == "torch_bin"
        assert list(opened.tensors) == ["w"]


def test_a_single_file_with_another_name_is_opened(tmp_path):
    write_safetensors(tmp_path / "gptq_model-4bit-128g.safetensors", {"a": FLOATS}, {})
    with open_checkpoint(tmp_path) as opened:
        assert list(opened.tensors) == ["a"]


def test_several_files_without_an_index_are_refused(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"4 .safetensors files .* download the missing index"
    ):
        open_checkpoint(sharded)


def test_two_indexes_are_refused(sharded):
    shutil.copy(sharded / "model.safetensors.index.json", sharded / "other.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"2 weight indexes .* keep one"):
        open_checkpoint(sharded)


def test_a_symlinked_shard_is_followed_as_in_the_hub_cache(sharded):
    shard = next(iter(sorted(sharded.glob("model-00001*"))))
    blob = sharded.parent / "blob"
    shard.rename(blob)
    shard.symlink_to(blob)
    with open_checkpoint(sharded) as opened:
        np.testing.assert_array_equal(opened.read("f32"), FLOATS)


def test_a_dangling_shard_is_missing(sharded):
    shard = next(iter(sorted(sharded.glob("model-00001*"))))
    shard.unlink()
    shard.symlink_to(sharded / "nowhere")
    with pytest.raises(CheckpointError, match="1 of 4 shards are missing"):
        open_checkpoint(sharded)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights; model.safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder, and not a hub id"):
        open_checkpoint(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "x\0y", "n" * 5000, "./models/absent", "gpt2"])
def test_odd_paths_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        open_checkpoint(text)


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="unknown kind of file"):
        open_checkpoint(tmp_path / "model.onnx")


def test_a_revision_of_a_local_path_is_refused(sharded):
    with pytest.raises(CheckpointError, match="a local path has no revision"):
        open_checkpoint(sharded, revision="main")


def test_a_hub_id_goes_to_the_hub(sharded, monkeypatch):
    calls = []

    def resolve(hub_id, revision):
        calls.append((hub_id, revision))
        return sharded

    monkeypatch.setattr("bcquant.io.hub.resolve", resolve)
    with checkpoint.open_checkpoint("org/model@v1") as opened:
        assert opened.path == sharded
    assert calls == [("org/model@v1", None)]


def test_bcquant_io_imports_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import bcquant.io.checkpoint, bcquant.io.writer, bcquant.io.digest, bcquant.io.hub\n"
        "import bcquant.io.gguf, bcquant.io.torch_bin\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
