"""A folder that is either complete or not there: filled under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bcquant.errors import ExportError
from bcquant.io.atomic import PARTIAL_SUFFIX, sync_folder, write_error


def refuse_existing(out: Path) -> None:
    """Raise ExportError if something is at `out`, other than an empty folder."""
    try:
        if out.is_dir() and not any(out.iterdir()):
            return
        is_there = os.path.lexists(out)
    except OSError as error:
        raise write_error(out, error) from error
    if is_there:
        raise ExportError(f"{out}: exists already; remove it or choose another -o")


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` when the block ends and is removed when it raises.

    Raises:
        ExportError: `out` exists and is not empty, or cannot be written.
    """
    refuse_existing(out)
    partial = out.parent / f".{out.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise write_error(out, error) from error
    try:
        yield partial
        try:
            sync_folder(partial)
            if out.is_dir():
                out.rmdir()  # empty, see refuse_existing
            os.replace(partial, out)
            sync_folder(out.parent)
        except OSError as error:
            raise write_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
