"""The journal of a run: what is sealed stays sealed, whatever kills the process.

A work folder holds one safetensors file per finished module, the activations at the current layer's
entrance, and `journal.jsonl`: a first line that fingerprints the run, then a line per event. A file
is durable before its line is written, so a line is a promise; a torn last line is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bcquant.errors import CheckpointError, ConfigError, ExportError
from bcquant.io.atomic import sync_folder
from bcquant.io.digest import digest_arrays
from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import remove_partials, write_safetensors
from bcquant.spec.manifest import Figures, ManifestRow

TUNED = "tuned"  # file of what tuning changed, beside those of the modules
Arrays = dict[str, npt.NDArray[Any]]
Seconds = dict[str, float]  # by candidate


class Journal:
    """The work folder of one run. Owns a lock on it; a context manager."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], restart: bool) -> None:
        """Open or create the work folder.

        Raises:
            ConfigError: it belongs to a run with other settings, or another process works in it.
            ExportError: it cannot be created.
        """
        self.folder = folder
        self.rows: dict[str, ManifestRow] = {}
        self.seconds: dict[str, Seconds] = {}
        self.layers_done = 0
        self.whole_model: Figures | None = None
        self.tuning: dict[str, Any] | None = None
        self.tuned: Arrays = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "journal.jsonl").open("a+b")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"{folder}: another run is working here; wait for it, or use -o"
            ) from error
        try:
            self._prepare(restart)
            self._replay(json.loads(json.dumps(fingerprint)))
            self.tuned = self._recall_tuned()
            remove_partials(folder / "modules")
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        # close() flushes, which fails again on a full disk: the first error is the one to report.
        with contextlib.suppress(OSError):
            self._file.close()

    def _prepare(self, restart: bool) -> None:
        """Make the folders; on a restart first drop what is there, the journal before its files."""
        try:
            for name in ("modules", "scratch"):
                if restart:
                    self._file.truncate(0)
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                (self.folder / name).mkdir(exist_ok=True)
            sync_folder(self.folder)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ExportError:
        return ExportError(
            f"{self.folder}: cannot be written ({error.strerror}); choose another output with -o"
        )

    @property
    def scratch(self) -> Path:
        """Folder for activations."""
        return self.folder / "scratch"

    def _replay(self, fingerprint: dict[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            self._file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._append({"run": fingerprint})
            return
        try:
            events = [json.loads(line) for line in lines]
            found = dict(events[0]["run"])
            for event in events[1:]:
                self._take(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{self.folder}/journal.jsonl: not a journal of bcquant; run with --restart"
            ) from error
        if found != fingerprint:
            raise ConfigError(
                f"{self.folder}: belongs to a run with other settings "
                f"({', '.join(_differences(found, fingerprint))}); give the same ones to go on, "
                "--restart to begin again, or -o for another output"
            )

    def _take(self, event: dict[str, Any]) -> None:
        """Apply one line after the first."""
        if "module" in event:
            row = ManifestRow.from_dict(event["module"])
            self.rows[row.module] = row
            self.seconds[row.module] = {k: float(v) for k, v in event["seconds"].items()}
        self.layers_done = max(self.layers_done, int(event.get("layers_done", 0)))
        if "whole_model" in event:
            self.whole_model = dict(event["whole_model"])
        if "tuning" in event:
            self.tuning = dict(event["tuning"])

    def _append(self, event: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ExportError(
                f"{self.folder}/journal.jsonl: writing failed ({error.strerror}); "
                "free space, then run the same command again"
            ) from error

    def seal(self, row: ManifestRow, tensors: Arrays, seconds: Seconds) -> None:
        """Make a finished module durable."""
        write_safetensors(self._path(row.module), tensors, {"format": "pt"})
        self._append({"module": asdict(row), "seconds": seconds})
        self.rows[row.module] = row
        self.seconds[row.module] = seconds

    def recall(self, module: str) -> Arrays:
        """The stored tensors of a sealed module.

        Raises:
            CheckpointError: the file is gone or is not what was sealed.
        """
        return self._read(module, self.rows[module].digest)

    def _read(self, name: str, digest: str) -> Arrays:
        path = self._path(name)
        if not path.exists():
            raise CheckpointError(
                f"{path}: missing, though the journal names it; run with --restart"
            )
        with SafetensorsFile(path) as file:
            tensors = {name: file.read(name) for name in file.tensors}
        if digest_arrays(tensors) != digest:
            raise CheckpointError(
                f"{path}: not what was sealed (SHA-256 differs); run with --restart"
            )
        return tensors

    def layer_done(self, layers_done: int) -> None:
        """Record that the activations behind this many layers are durable."""
        try:
            sync_folder(self.scratch)
        except OSError as error:
            raise self._unwritable(error) from error
        self._append({"layers_done": layers_done})
        self.layers_done = layers_done

    def measured(self, figures: Figures) -> None:
        """Record the whole-model figures."""
        self._append({"whole_model": figures})
        self.whole_model = figures

    def seal_tuned(self, tensors: Arrays, facts: Mapping[str, Any]) -> None:
        """Make tuned scales (by module) and floats (by tensor name) durable, and how it went."""
        write_safetensors(self._path(TUNED), tensors, {"format": "pt"})
        tuning = {**facts, "digest": digest_arrays(tensors)}
        self._append({"tuning": tuning})
        self.tuning, self.tuned = tuning, tensors

    def _recall_tuned(self) -> Arrays:
        return {} if self.tuning is None else self._read(TUNED, self.tuning["digest"])

    def _path(self, module: str) -> Path:
        return self.folder / "modules" / f"{module}.safetensors"


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs, e.g. "recipe.format.bits was 4 and is now 3"; the first five."""
    lines: list[str] = []
    for key in sorted({*found, *wanted}):
        before, now = found.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            shown = (str(value)[:40] for value in (before, now))
            lines.append(f"{prefix}{key} was {' and is now '.join(shown)}")
    return lines[:5]
