"""Measured sensitivities of a model's fused sets, kept durably beside the run that needs them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bcquant import __version__
from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.sensitivity import SensitivityStream, SetCost
from bcquant.errors import CheckpointError, ConfigError, ExportError
from bcquant.io.atomic import (
    atomic_write_json,
    check_writable,
    remove_partials,
    sync_folder,
    write_error,
)
from bcquant.io.json_file import read_json_object
from bcquant.models.precision import fast_float32
from bcquant.models.source import ModelSource
from bcquant.pipeline.identity import identity
from bcquant.spec.quant_format import QuantFormat

RECORD = "sensitivity.json"
Progress = Callable[[str, int, int], None]


def measure_sets(
    source: ModelSource,
    tokens: CalibrationTokens,
    formats: tuple[QuantFormat, ...],
    folder: Path,
    seed: int = 0,
    restart: bool = False,
    progress: Progress = lambda what, done, total: None,
    rotation: str = "none",
) -> list[SetCost]:
    """Cost of every fused set in every format, in model order; what is recorded is read back.

    A layer at a time; a run that was cut off goes on at the layer that it was in.

    Args:
        tokens: all its sequences are used.
        formats: of different bits.
        folder: record and activations live here; the caller removes it when the run has ended.
        seed: draws the labels of the Fisher form.
        progress: called after every layer, forward and backward.
        rotation: that `source` is seen through; part of the record.
    Raises:
        ConfigError: the folder's record has other settings, or another process works there.
        CheckpointError, ExportError: the record or the disk.
        SolverError: the model's activations are not finite.
    """
    with _locked(folder):
        remove_partials(folder)
        if restart:
            (folder / RECORD).unlink(missing_ok=True)
        record = _Record(folder, {**_settings(source, tokens, formats, seed), "rotation": rotation})
        if len(record.layers) < source.config.num_layers:
            with fast_float32():
                _measure(source, tokens, formats, seed, record, progress)
        for path in folder.glob("*.f32"):
            path.unlink()
        return [cost for layer in reversed(record.layers) for cost in layer]


def _settings(
    source: ModelSource, tokens: CalibrationTokens, formats: tuple[QuantFormat, ...], seed: int
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    settings = {
        "source": identity(source),
        "calibration": {"origin": tokens.origin, "digest": tokens.digest, "seed": seed},
        "formats": [asdict(fmt) for fmt in formats],
        "versions": {
            "bcquant": __version__,
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
        },
    }
    return dict(json.loads(json.dumps(settings)))


class _Record:
    """`sensitivity.json`: settings, whether the forward pass is done, and the layers' costs.

    Attributes:
        layers: the last layer first, as they are measured; a cost for each stage.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self._settings = folder, settings
        self.is_forward_done = False
        self.layers: list[list[SetCost]] = []
        if not (folder / RECORD).exists():
            return
        found = read_json_object(folder / RECORD)
        if found.get("settings") != settings:
            raise ConfigError(
                f"{folder}: holds sensitivities measured with another model, calibration, format, "
                "rotation or number of threads; give the same settings to go on, --restart to "
                "begin again, or -o for another output"
            )
        try:
            self.is_forward_done = bool(found["is_forward_done"])
            self.layers = [
                [SetCost(_by_bits(cost["kl"]), _by_bits(cost["errors"])) for cost in layer]
                for layer in found["layers"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{folder / RECORD}: not a record of bcquant; run with --restart"
            ) from error

    def write(self) -> None:
        """Make everything so far durable, the scratch files' names too."""
        try:
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(self.folder, error) from error
        value = {
            "settings": self._settings,
            "is_forward_done": self.is_forward_done,
            "layers": [[asdict(cost) for cost in layer] for layer in self.layers],
        }
        atomic_write_json(self.folder / RECORD, value)


def _by_bits(values: dict[str, Any]) -> dict[int, float]:
    return {int(bits): float(value) for bits, value in values.items()}


def _measure(
    source: ModelSource,
    tokens: CalibrationTokens,
    formats: tuple[QuantFormat, ...],
    seed: int,
    record: _Record,
    progress: Progress,
) -> None:
    num_layers = source.config.num_layers
    left = num_layers - len(record.layers)
    stream = SensitivityStream(source, tokens.ids_ST, record.folder, formats, left)
    try:
        if not record.is_forward_done:
            # Every boundary and two gradients.
            needed = (num_layers + 3) * tokens.ids_ST.size * source.config.hidden_size * 4
            check_writable(record.folder, needed)
            stream.forward(seed, lambda done, _: progress("sensitivity", done, 2 * num_layers))
            record.is_forward_done = True
            record.write()
        while stream.layer > 0:
            record.layers.append(stream.run_layer())
            record.write()
            stream.forget_previous()
            progress("sensitivity", 2 * num_layers - stream.layer, 2 * num_layers)
    finally:
        stream.close()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ExportError(
            f"{folder}: cannot be written ({error.strerror}); choose another output with -o"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder}: another run is working here; wait for it, or use -o"
            ) from error
        yield
    finally:
        os.close(lock)
