from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bcquant.errors import ExportError
from bcquant.io import atomic
from bcquant.io.atomic import (
    AtomicFile,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    remove_partials,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(code: int):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def test_atomic_write_bytes_replaces_the_file_and_leaves_nothing_else(tmp_path):
    atomic_write_bytes(tmp_path / "f", b"old")
    atomic_write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_write_at_replaces_earlier_bytes_before_anything_is_visible(tmp_path, is_sealed):
    file = AtomicFile(tmp_path / "f")
    file.write(b"....data")
    if is_sealed:
        file.seal()
    file.write_at(0, b"head")
    assert not (tmp_path / "f").exists()
    if not is_sealed:
        file.write(b"more")
        file.seal()
    file.publish()
    assert (tmp_path / "f").read_bytes() == (b"headdata" if is_sealed else b"headdatamore")
    assert names(tmp_path) == ["f"]


def test_a_failed_write_at_is_one_error_and_leaves_nothing(tmp_path, monkeypatch):
    with (
        pytest.raises(ExportError, match="no space left on device"),
        atomic_file(tmp_path / "f") as file,
    ):
        file.write(b"....")
        monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
        file.write_at(0, b"head")
    assert names(tmp_path) == []


def test_atomic_write_makes_missing_folders(tmp_path):
    atomic_write_text(tmp_path / "a" / "b" / "f.txt", "ж")
    assert (tmp_path / "a" / "b" / "f.txt").read_bytes() == "ж".encode()


def test_atomic_write_honours_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "f", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_atomic_write_json_keeps_key_order_and_ends_with_a_newline(tmp_path):
    atomic_write_json(tmp_path / "f.json", {"b": 1, "a": "ж"})
    assert (tmp_path / "f.json").read_text("utf-8") == '{\n  "b": 1,\n  "a": "ж"\n}\n'


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}])
def test_atomic_write_json_refuses_what_json_cannot_hold(tmp_path, value):
    with pytest.raises(ExportError, match=r"f.json: the value cannot be written as JSON"):
        atomic_write_json(tmp_path / "f.json", value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EROFS, "read-only file system; write to a folder on a writable disk"),
        (errno.EACCES, "permission denied; choose a folder that you may write to"),
        (errno.EIO, "input/output error; check the disk"),
    ],
)
def test_a_failing_call_is_reported_and_cleaned_up(tmp_path, monkeypatch, call, code, advice):
    (tmp_path / "f").write_bytes(b"old")
    monkeypatch.setattr(atomic.os, call, failing(code))
    with pytest.raises(ExportError, match=f"f: cannot be written: {advice}"):
        atomic_write_bytes(tmp_path / "f", b"new")
    monkeypatch.undo()
    assert names(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_an_error_of_the_caller_passes_and_is_cleaned_up(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "f") as file:
        file.write(b"part")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_nothing_is_visible_before_publish(tmp_path):
    file = AtomicFile(tmp_path / "f")
    file.write(b"data")
    file.seal()
    assert not (tmp_path / "f").exists()
    file.publish()
    file.discard()
    assert names(tmp_path) == ["f"]


def test_writing_below_a_file_is_reported(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(ExportError, match="cannot be written"):
        atomic_write_bytes(tmp_path / "f" / "g", b"")


def test_a_name_that_is_too_long_is_reported(tmp_path):
    with pytest.raises(ExportError, match="choose a shorter name"):
        atomic_write_bytes(tmp_path / ("n" * 300), b"")


def test_writing_over_a_folder_is_reported(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(ExportError, match="cannot be written"):
        atomic_write_bytes(tmp_path / "f", b"")
    assert names(tmp_path) == ["f"]


def test_a_really_full_disk_is_reported_and_left_clean(small_disk):
    atomic_write_bytes(small_disk / "f", b"old")
    with pytest.raises(ExportError, match="no space left on device; free some space"):
        atomic_write_bytes(small_disk / "f", bytes(1 << 20))
    assert names(small_disk) == ["f"]
    assert (small_disk / "f").read_bytes() == b"old"


def test_a_really_read_only_disk_is_reported(read_only_disk):
    with pytest.raises(ExportError, match="read-only file system; write to a folder on"):
        atomic_write_bytes(read_only_disk / "f", b"")


def test_a_real_file_size_limit_is_reported_and_left_clean(tmp_path):
    # Needs no root, unlike the mounts: the kernel itself refuses to extend the file.
    code = (
        "import resource, signal, sys\n"
        "from bcquant.io.atomic import atomic_write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "atomic_write_bytes(sys.argv[1], bytes(1 << 20))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ExportError" in done.stderr
    assert "file too large; use smaller shards" in done.stderr
    assert names(tmp_path) == []


def test_a_killed_writer_leaves_only_a_partial_that_is_removed_on_request(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from bcquant.io.atomic import AtomicFile\n"
        "file = AtomicFile(Path(sys.argv[1]))\n"
        "file.write(bytes(1 << 20))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "f").write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "f")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    assert remove_partials(tmp_path) == 1
    assert names(tmp_path) == ["f"]


def test_remove_partials_leaves_folders_and_other_files(tmp_path):
    (tmp_path / ".x.partial").mkdir()
    (tmp_path / "y.partial").touch()
    assert remove_partials(tmp_path) == 0
    assert names(tmp_path) == [".x.partial", "y.partial"]


def test_check_writable_accepts_a_folder_that_is_not_there_yet_and_makes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b", 1)
    assert names(tmp_path) == []


def test_check_writable_tells_both_numbers_when_space_is_short(tmp_path):
    with pytest.raises(ExportError, match=rf"{1 << 60} bytes are needed but \d+ are free"):
        check_writable(tmp_path, 1 << 60)


def test_check_writable_refuses_a_file(tmp_path):
    (tmp_path / "f").touch()
    for path in (tmp_path / "f", tmp_path / "f" / "g"):
        with pytest.raises(ExportError, match=r"f is a file|a part of the path is a file"):
            check_writable(path, 1)


def test_check_writable_refuses_a_read_only_disk(read_only_disk):
    with pytest.raises(ExportError, match="read-only file system"):
        check_writable(read_only_disk / "out", 1)


def test_check_writable_sees_the_size_of_the_disk(small_disk):
    check_writable(small_disk, 200_000)
    with pytest.raises(ExportError, match="300000 bytes are needed but 262144 are free"):
        check_writable(small_disk, 300_000)


def test_a_folder_that_cannot_be_synced_is_tolerated_only_when_unsupported(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", failing(errno.EINVAL))
    atomic.sync_folder(tmp_path)
    monkeypatch.setattr(atomic.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        atomic.sync_folder(tmp_path)


def test_json_written_is_json(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "d"}}
    atomic_write_json(tmp_path / "f", value)
    assert json.loads((tmp_path / "f").read_text()) == value
