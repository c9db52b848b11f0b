"""What all tools start from: the float model as a plain folder, the same calibration tokens."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcquant.calib.dataset import CalibrationTokens
from bcquant.errors import ExportError
from bcquant.eval.sweep.exports import export_job
from bcquant.io.atomic import atomic_write_json, check_writable
from bcquant.io.writer import TensorSpec, write_sharded
from bcquant.models.architecture import quantizable_modules
from bcquant.models.gguf_config import gguf_name
from bcquant.models.hf_config import to_hf_config
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.recipe import CalibOptions

DECODER, REST = "decoder.safetensors", "rest.safetensors"
_INDEX = "model.safetensors.index.json"
_ONE_FILE = 1 << 62  # bytes of a shard


def decoder_modules(source: ModelSource) -> list[str]:
    """Canonical names of every Linear of the blocks, in model order."""
    layers = range(source.config.num_layers)
    return [name for layer in layers for name in quantizable_modules(source.config, layer)]


@dataclass(frozen=True)
class Inputs:
    """Files that tools read; each is made when it is first asked for and kept in `folder`.

    Attributes:
        source: the float model.
        calib: what bcquant's own recipe takes.
        tokens: what that gives; peers get its train and select part.
    """

    source: ModelSource
    calib: CalibOptions
    tokens: CalibrationTokens
    folder: Path

    def float_folder(self) -> Path:
        """The model in float16: DECODER with the Linears of the blocks, REST with the others.

        Raises:
            ExportError: transformers has no class for this model, or the disk is full.
        """
        return self._once("float", self._write_float)

    def calibration(self) -> Path:
        """A .npy file of int64 ids, shape (S, T)."""
        return self._once("calibration.npy", self._write_calibration)

    def importance(self) -> Path:
        """A .npz file: GGUF's name of each Linear -> mean square of its inputs, float32 (K,)."""
        return self._once("importance.npz", self._write_importance)

    def gguf(self) -> Path:
        """The model as a float16 GGUF file. ExportError: GGUF cannot hold it."""
        return self._once("float16.gguf", self._write_gguf)

    def complete(self, folder: Path) -> None:
        """Make a folder that holds a float DECODER into a whole model.

        Raises:
            ExportError: as `float_folder`.
        """
        plain = self.float_folder()
        for path in plain.iterdir():
            target = folder / path.name
            if not target.exists():
                try:
                    os.link(path, target)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(path, target)

    def rest_bytes(self) -> int:
        """Bytes of everything but the decoder's Linears, in float16."""
        return (self.float_folder() / REST).stat().st_size

    def _once(self, name: str, write: Callable[[Path], None]) -> Path:
        path = self.folder / name
        if not path.exists():
            partial = path.with_name(f"partial-{name}")
            if partial.is_dir():
                shutil.rmtree(partial)
            write(partial)
            partial.rename(path)
        return path

    def _write_float(self, folder: Path) -> None:
        source = self.source
        linear = {f"{module}.weight" for module in decoder_modules(source)}
        config = to_hf_config(source.config, "float16")
        check_writable(self.folder, sum(2 * _size(source, name) for name in source.names()))
        folder.mkdir()
        weight_map: dict[str, str] = {}
        for file_name, part in (
            (DECODER, [n for n in source.names() if n in linear]),
            (REST, [n for n in source.names() if n not in linear]),
        ):
            specs = [TensorSpec(name, "F16", source.shape(name)) for name in part]
            stem = file_name.removesuffix(".safetensors")
            write_sharded(folder, specs, self._half, _ONE_FILE, {"format": "pt"}, stem)
            weight_map |= dict.fromkeys(part, file_name)
        total = sum(2 * _size(source, name) for name in weight_map)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic_write_json(folder / _INDEX, index)
        atomic_write_json(folder / "config.json", config)
        export_tokenizer(source.path, folder)

    def _half(self, name: str) -> npt.NDArray[np.float16]:
        with np.errstate(over="ignore"):
            values = self.source.weight(name).astype(np.float16)
        if not bool(np.isfinite(values).all()):
            raise ExportError(f"{name}: a value does not fit into float16, which the peers read")
        return values

    def _write_calibration(self, path: Path) -> None:
        tokens = self.tokens
        with path.open("wb") as file:
            np.save(file, tokens.ids_ST[: tokens.num_train + tokens.num_select])

    def _write_importance(self, path: Path) -> None:
        from bcquant.eval.sweep.importance import mean_squares

        squares = mean_squares(self.source, np.load(self.calibration()))
        named = {gguf_name(f"{module}.weight"): values for module, values in squares.items()}
        with path.open("wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]

    def _write_gguf(self, path: Path) -> None:
        # Only weights are compared, so a text that llama.cpp cuts otherwise does not matter.
        with open_model(self.float_folder()) as plain:
            job = export_job("gguf", plain, ["--allow-lossy"])
            refusals = job.validate(lambda what, done, total: None).refusals
            if refusals:
                raise ExportError(f"gguf cannot hold this model: {'; '.join(refusals)}")
            job.write(path, lambda what, done, total: None)


def _size(source: ModelSource, name: str) -> int:
    return math.prod(source.shape(name))
