"""A full disk and a read-only folder: one line, nothing half-written, and the run goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_outputs import CHUNK_TOKENS, Outcome, Reference, contents

from bcquant.cli import main

Mount = Callable[..., None]


@pytest.fixture(autouse=True)
def same_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the reference run; the last bits of sums depend on it."""
    monkeypatch.setattr("bcquant.calib.layer_stream.CHUNK_TOKENS", CHUNK_TOKENS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A folder, and `mount(options)` that puts a tmpfs there or changes the one that is there."""
    if os.geteuid() != 0:
        pytest.skip("a file system of limited size needs root to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> None:
        nonlocal mounted
        flags = f"remount,{options}" if mounted else options
        command = ["mount", "-t", "tmpfs", "-o", flags, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 and not mounted:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True

    yield folder, mount
    if mounted:
        # Busy means that a failed run left a file open; -l, lest the mount outlive the test.
        is_free = subprocess.run(["umount", str(folder)]).returncode == 0
        assert is_free or subprocess.run(["umount", "-l", str(folder)]).returncode == 0
        assert is_free, "a failed run left a file open"


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("bcquant: error: ")
    return err


# From "not the first activations" to "not those behind the last layer".
@pytest.mark.parametrize("size_kib", [4, 16, 64, 128, 192, 224])
def test_full_disk_is_reported_and_the_run_continues_when_there_is_space(
    size_kib: int,
    reference: Reference,
    small_disk: tuple[Path, Mount],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk, mount = small_disk
    mount(f"size={size_kib}k")
    out = disk / "out"
    assert main([*reference.argv, "-o", str(out)]) == 2
    line = complaint(capsys)
    assert f"{out}.work" in line and "No space left on device" in line
    assert sorted(p.name for p in disk.iterdir()) in (["out.work"], [])
    assert not list(disk.rglob("*.partial"))

    mount("size=8m")
    assert main([*reference.argv, "-o", str(out)]) == 0
    assert contents(out) == reference.files
    assert [p.name for p in disk.iterdir()] == ["out"]


@pytest.mark.parametrize("free_kib", [0, 4, 20, 40, 56])
@pytest.mark.parametrize("moment", ["Journal.seal:after", "write_output:before"])
def test_disk_that_fills_up_later(
    moment: str,
    free_kib: int,
    reference: Reference,
    bcquant_run: Callable[..., Outcome],
    small_disk: tuple[Path, Mount],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The next thing to write is a module, the journal, or a file of the output."""
    disk, mount = small_disk
    mount("size=2m")
    argv = [*reference.argv, "-o", str(disk / "out")]
    assert bcquant_run(*argv, at=moment).status == -signal.SIGKILL
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
    (disk / "filler").write_bytes(bytes(free - 1024 * free_kib))
    assert main(argv) == 2
    line = complaint(capsys).lower()
    assert str(disk / "out") in line and ("no space left on device" in line or "are free" in line)
    assert sorted(p.name for p in disk.iterdir()) == ["filler", "out.work"]
    assert not list(disk.rglob("*.partial"))

    (disk / "filler").unlink()
    assert main(argv) == 0
    assert contents(disk / "out") == reference.files
    assert [p.name for p in disk.iterdir()] == ["out"]


def test_full_disk_and_then_another_output(
    reference: Reference,
    small_disk: tuple[Path, Mount],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk, mount = small_disk
    mount("size=128k")
    assert main([*reference.argv, "-o", str(disk / "out")]) == 2
    assert str(disk) in complaint(capsys)
    assert main([*reference.argv, "-o", str(tmp_path / "elsewhere")]) == 0
    assert contents(tmp_path / "elsewhere") == reference.files


def test_read_only_disk_is_refused_before_any_work(
    reference: Reference,
    small_disk: tuple[Path, Mount],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, mount = small_disk
    mount("ro")
    monkeypatch.setattr("bcquant.pipeline.quantize.tokens_for", fail_if_called)
    assert main([*reference.argv, "-o", str(disk / "deep" / "out")]) == 2
    assert "read-only file system" in complaint(capsys)


def fail_if_called(*_: object) -> None:
    raise AssertionError("work began")


def test_unwritable_folder_is_refused_before_any_work(
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bcquant.pipeline.quantize.tokens_for", fail_if_called)
    if os.geteuid() == 0:  # permission bits do not bind root, but nobody writes into /proc
        folder = Path("/proc/bcquant")
    else:
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o500)
    assert main([*reference.argv, "-o", str(folder / "out")]) == 2
    assert str(folder) in complaint(capsys)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_existing_output_is_refused_before_any_work_and_left_alone(
    kind: str,
    flags: list[str],
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bcquant.pipeline.quantize.tokens_for", fail_if_called)
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    assert main([*reference.argv, "-o", str(out), *flags]) == 2
    assert f"{out}: exists; remove it or choose another output with -o" in complaint(capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_output_below_a_file_is_refused_before_any_work(
    reference: Reference,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bcquant.pipeline.quantize.tokens_for", fail_if_called)
    (tmp_path / "file").write_text("mine")
    assert main([*reference.argv, "-o", str(tmp_path / "file" / "out")]) == 2
    assert "is a file" in complaint(capsys)
