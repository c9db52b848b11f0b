"""The journal of a run: what is sealed stays sealed, whatever kills the process.

A work folder holds one safetensors file per finished module, the activations at the current layer's
entrance, and `journal.jsonl`: a first line that fingerprints the run, then a line per event. A file
is durable before its line is written, so a line is a promise; a torn last line is dropped.
"""

from __future__ import annotations

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
from bcquant.io.digest import digest_arrays
from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import write_safetensors
from bcquant.spec.manifest import ManifestRow

Arrays = dict[str, npt.NDArray[Any]]


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
        self.seconds: dict[str, float] = {}
        self.layers_done = 0
        self.whole_model: dict[str, float] | None = None
        if restart and folder.exists():
            shutil.rmtree(folder)
        try:
            (folder / "modules").mkdir(parents=True, exist_ok=True)
            (folder / "scratch").mkdir(exist_ok=True)
            self._file = (folder / "journal.jsonl").open("a+b")
        except OSError as error:
            raise ExportError(
                f"{folder}: cannot be written ({error.strerror}); choose another output with -o"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(
                f"{folder}: another run is working here; wait for it, or use -o"
            ) from error
        try:
            self._replay(json.loads(json.dumps(fingerprint)))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

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
            found = events[0]["run"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.folder}/journal.jsonl: not a journal of bcquant; run with --restart"
            ) from error
        if found != fingerprint:
            keys = sorted(k for k in fingerprint if found.get(k) != fingerprint[k])
            raise ConfigError(
                f"{self.folder}: belongs to a run with other settings ({', '.join(keys)} differ); "
                "give the same ones to go on, --restart to begin again, or -o for another output"
            )
        for event in events[1:]:
            if "module" in event:
                row = ManifestRow.from_dict(event["module"])
                self.rows[row.module] = row
                self.seconds[row.module] = float(event["seconds"])
            self.layers_done = max(self.layers_done, int(event.get("layers_done", 0)))
            self.whole_model = event.get("whole_model", self.whole_model)

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

    def seal(self, row: ManifestRow, tensors: Arrays, seconds: float) -> None:
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
        path = self._path(module)
        if not path.exists():
            raise CheckpointError(
                f"{path}: missing, though the journal names it; run with --restart"
            )
        with SafetensorsFile(path) as file:
            tensors = {name: file.read(name) for name in file.tensors}
        if digest_arrays(tensors) != self.rows[module].digest:
            raise CheckpointError(
                f"{path}: not what was sealed (SHA-256 differs); run with --restart"
            )
        return tensors

    def layer_done(self, layers_done: int) -> None:
        """Record that the activations behind this many layers are durable."""
        self._append({"layers_done": layers_done})
        self.layers_done = layers_done

    def measured(self, figures: dict[str, float]) -> None:
        """Record the whole-model figures."""
        self._append({"whole_model": figures})
        self.whole_model = figures

    def _path(self, module: str) -> Path:
        return self.folder / "modules" / f"{module}.safetensors"
