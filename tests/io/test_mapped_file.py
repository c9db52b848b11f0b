from __future__ import annotations

import os

import numpy as np
import pytest

from bcquant.errors import CheckpointError
from bcquant.io import mapped_file
from bcquant.io.mapped_file import MappedFile


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(range(256)) * 100)
    return path


def test_copy_into_copies_across_chunks(file, monkeypatch):
    monkeypatch.setattr(mapped_file, "CHUNK_BYTES", 1000)
    out = np.empty(20_001, np.uint8)
    with MappedFile(file) as mapped:
        mapped.copy_into(out, 77)
    assert out.tobytes() == file.read_bytes()[77 : 77 + 20_001]


@pytest.mark.parametrize(("offset", "count"), [(-1, 2), (25_600, 1), (25_599, 2), (0, 1 << 60)])
def test_bytes_at_refuses_ranges_outside_the_file(file, offset, count):
    with MappedFile(file) as mapped, pytest.raises(CheckpointError, match="the file has 25600"):
        mapped.bytes_at(offset, count)


def test_a_file_that_shrinks_is_reported_instead_of_killing_the_process(file):
    with MappedFile(file) as mapped:
        os.truncate(file, 100)
        with pytest.raises(CheckpointError, match="shrank from 25600 to 100"):
            mapped.bytes_at(20_000, 4)


def test_reading_after_close_is_refused(file):
    mapped = MappedFile(file)
    mapped.close()
    mapped.close()
    with pytest.raises(CheckpointError, match="after the checkpoint was closed"):
        mapped.bytes_at(0, 1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.bin: the file does not exist"):
        MappedFile(tmp_path / "absent.bin")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        MappedFile(tmp_path / "empty")


def test_a_folder_and_a_fifo_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            MappedFile(path)


def test_an_unreadable_file_is_reported(file, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        MappedFile(file)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        MappedFile(path)
