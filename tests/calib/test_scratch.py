"""bcquant.calib.scratch: activations on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from bcquant.calib.scratch import ScratchArray
from bcquant.errors import CheckpointError, ExportError

SHAPE = (5, 3, 4)


def values(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hidden.f32"


def test_round_trip_by_ranges_in_any_order(path: Path) -> None:
    wanted = values(5)
    array = ScratchArray(path, SHAPE)
    array.write(3, wanted[3:])
    array.write(0, wanted[:3])
    assert torch.equal(array.read(0, 5), wanted)
    assert torch.equal(array.read(2, 4), wanted[2:4])
    array.close()


def test_strided_values_are_stored_in_order(path: Path) -> None:
    array = ScratchArray(path, SHAPE)
    wanted = values(5).flip(0).transpose(1, 2).contiguous().transpose(1, 2)
    array.write(0, wanted)
    assert torch.equal(array.read(0, 5), wanted)
    array.close()


def test_non_finite_values_survive(path: Path) -> None:
    wanted = values(5)
    wanted[0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    array = ScratchArray(path, SHAPE)
    array.write(0, wanted)
    assert torch.equal(array.read(0, 5).isnan(), wanted.isnan())
    array.close()


def test_a_kept_file_is_opened_again(path: Path) -> None:
    array = ScratchArray(path, SHAPE)
    array.write(0, values(5))
    array.sync()
    array.close()
    again = ScratchArray(path, SHAPE, keep=True)
    assert torch.equal(again.read(0, 5), values(5))
    again.close()


@pytest.mark.parametrize("size", [1, 239, 241, 480])
def test_what_a_killed_run_left_is_dropped(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)
    array = ScratchArray(path, SHAPE)
    assert path.stat().st_size == 0
    array.write(0, values(5))
    assert torch.equal(array.read(0, 5), values(5))
    array.close()


@pytest.mark.parametrize("size", [1, 239, 241, 480])
def test_a_kept_file_of_another_size_is_refused(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)
    with pytest.raises(CheckpointError, match=rf"hidden\.f32: {size} bytes, but 240 are needed"):
        ScratchArray(path, SHAPE, keep=True)
    assert path.stat().st_size == size


def test_reading_what_was_never_written_is_refused(path: Path) -> None:
    array = ScratchArray(path, SHAPE)
    array.write(0, values(2))
    with pytest.raises(CheckpointError, match=r"hidden\.f32: ends at byte 96; run with --restart"):
        array.read(1, 3)
    array.close()


def test_full_disk_is_reported_with_the_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    array = ScratchArray(path, SHAPE)
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(ExportError, match=r"hidden\.f32: writing failed \(No space left"):
        array.write(0, values(5))
    array.close()


def test_short_writes_and_reads_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:11]], at))
    array = ScratchArray(path, SHAPE)
    array.write(0, values(5))
    assert torch.equal(array.read(0, 5), values(5))
    array.close()


@pytest.mark.parametrize("call", ["preadv", "fsync"])
def test_device_failures_are_reported_with_the_path(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    array = ScratchArray(path, SHAPE)
    array.write(0, values(5))
    monkeypatch.setattr(os, call, fail)
    with pytest.raises((CheckpointError, ExportError), match=r"hidden\.f32: .* failed \(Input"):
        array.read(0, 1) if call == "preadv" else array.sync()
    array.close()


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be opened"):
        ScratchArray(tmp_path / "gone" / "x.f32", SHAPE)


def test_discard_removes_the_file_and_may_be_repeated(path: Path) -> None:
    array = ScratchArray(path, SHAPE)
    array.write(0, values(5))
    array.close()
    assert path.exists()
    array.discard()
    array.discard()
    assert not path.exists()
