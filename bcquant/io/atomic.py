"""Files that are either complete or not there: written under another name, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bcquant.errors import ExportError

PARTIAL_SUFFIX = ".partial"

_ADVICE = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some of your quota or write elsewhere",
    errno.EROFS: "write to a folder on a writable disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EFBIG: "use smaller shards or another file system",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "the path is a folder; choose another name",
}


def write_error(path: Path, error: OSError) -> ExportError:
    """The ExportError of a failed write: what failed, why, what to do."""
    reason = (error.strerror or str(error)).lower()
    advice = _ADVICE.get(error.errno or 0, "check the disk and write again")
    return ExportError(f"{path}: cannot be written: {reason}; {advice}")


class AtomicFile:
    """A file in the making beside `path`; nothing is visible there until `publish`.

    write* -> seal -> publish, or `discard` at any point; `write_at` anywhere before `publish`. The
    caller ends with `publish` or `discard`.

    Raises:
        ExportError: any of its methods, when the disk is full, read-only or refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temp = path.parent / f".{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error) from error

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Replace bytes that were written before, and force them to the disk; also after `seal`."""
        try:
            if not self._file.closed:
                self._file.flush()
            with open(self._temp, "r+b") as file:
                file.seek(offset)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def seal(self) -> None:
        """Force everything to the disk and close."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error) from error

    def publish(self) -> None:
        """Rename to `path`, replacing what was there, and sync the folder."""
        try:
            os.replace(self._temp, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error

    def discard(self) -> None:
        """Remove what was written; fine after `publish` and more than once."""
        # close() flushes, which fails again on a full disk: the first error is the one to report.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[AtomicFile]:
    """An `AtomicFile` that is published when the block ends and discarded when it raises.

    Raises:
        ExportError: the file cannot be written; nothing is left behind.
    """
    file = AtomicFile(path)
    try:
        yield file
        file.seal()
        file.publish()
    finally:
        file.discard()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable.

    Raises:
        OSError: the device failed.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; their renames are synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file; a reader sees the old content or the new, never a part.

    Raises:
        ExportError: it cannot be written; the old file is untouched and nothing is left behind.
    """
    with atomic_file(Path(path)) as file:
        file.write(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """`atomic_write_bytes` of JSON, two-space indent, keys in the given order, final newline.

    Raises:
        ExportError: the value has no strict JSON form (NaN has none), or the write failed.
    """
    atomic_write_bytes(path, json_bytes(path, value))


def json_bytes(path: str | Path, value: Any) -> bytes:
    """The bytes that `atomic_write_json` writes; `path` only names the file in errors.

    Raises:
        ExportError: the value has no strict JSON form.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: the value cannot be written as JSON: {error}") from error


def remove_partials(folder: str | Path) -> int:
    """Delete the unfinished files that a killed process left in `folder`; return how many.

    Call it only when no other process writes there.

    Raises:
        ExportError: one cannot be deleted.
    """
    removed = 0
    for path in sorted(Path(folder).glob(f".*{PARTIAL_SUFFIX}")):
        try:
            # Folders are the caller's own.
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
                removed += 1
        except OSError as error:
            raise write_error(path, error) from error
    return removed


def check_writable(folder: str | Path, needed_bytes: int) -> None:
    """Refuse early: can a file be made in `folder`, and are `needed_bytes` free there?

    The folder may not exist yet; its nearest existing parent is then tried. Nothing is left behind.

    Raises:
        ExportError: it is a file, read-only, or has too little space; with both numbers.
    """
    folder = Path(folder)
    place = folder
    try:
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ExportError(f"{folder}: {place} is a file; choose another folder")
        # Permission bits say nothing about root or a read-only mount, so a file is really made.
        probe = place / f".probe.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        probe.unlink()
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise write_error(folder, error) from error
    if free < needed_bytes:
        raise ExportError(
            f"{folder}: {needed_bytes} bytes are needed but {free} are free; "
            "free some space or write elsewhere"
        )
