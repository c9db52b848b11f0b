from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount_tmpfs(folder: Path, options: str) -> None:
    """Mount a small memory disk, or skip with what is missing."""
    if sys.platform != "linux":
        pytest.skip(f"mounting a tmpfs needs Linux; this is {sys.platform}")
    if os.geteuid() != 0:
        pytest.skip(f"mounting a tmpfs needs root; this is uid {os.geteuid()}")
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "bcquant-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("mounting a tmpfs needs the 'mount' command; it is not installed")
    if done.returncode:
        pytest.skip(f"mounting a tmpfs was refused: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "small_disk"
    mount_tmpfs(folder, "size=256k")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that is mounted read-only."""
    folder = tmp_path / "read_only_disk"
    mount_tmpfs(folder, "size=256k,ro")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
