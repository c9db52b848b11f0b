"""One way to open any checkpoint: a folder, a file or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import RawTensor, TensorInfo, bf16_to_f32, f32_to_bf16
from bcquant.io.folder import WeightFiles, find_weights, read_config
from bcquant.io.reader import CheckpointReader
from bcquant.io.safetensors import SafetensorsCheckpoint

__all__ = [
    "CheckpointReader",
    "RawTensor",
    "TensorInfo",
    "bf16_to_f32",
    "f32_to_bf16",
    "open_checkpoint",
]

_KINDS = {".safetensors": "safetensors", ".bin": "torch_bin", ".gguf": "gguf"}


def open_checkpoint(path_or_hub_id: str | Path, revision: str | None = None) -> CheckpointReader:
    """Open a checkpoint and validate all its headers; no tensor data is read.

    Args:
        path_or_hub_id: a model folder, a .safetensors, .bin or .gguf file, or "org/name" with an
            optional "@revision" of the Hugging Face hub. What exists on the disk goes first.
        revision: branch, tag or commit of a hub id.
    Returns:
        a reader; close it or use it as a context manager. Its `path` is the folder or file.
    Raises:
        CheckpointError: nothing there, not a checkpoint, damaged, or the hub refused.
        ConfigError: a revision was given twice.
    Source: the folder's rules are those of `bcquant.io.folder.find_weights`.
    """
    path = Path(path_or_hub_id)
    if not _exists(path):
        from bcquant.io.hub import is_hub_id, resolve

        if not isinstance(path_or_hub_id, str) or not is_hub_id(path_or_hub_id):
            raise CheckpointError(
                f"{path_or_hub_id}: no such file or folder, and not a hub id of the form org/name"
            )
        path = resolve(path_or_hub_id, revision)
    elif revision is not None:
        raise CheckpointError(f"{path}: a local path has no revision; drop {revision!r}")
    if path.is_dir():
        return _open(path, find_weights(path), read_config(path))
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise CheckpointError(
            f"{path}: unknown kind of file; a folder, .safetensors, .bin or .gguf is needed"
        )
    config = {} if kind == "gguf" else read_config(path.parent)
    return _open(path, WeightFiles(kind, [path], None), config)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path, weights: WeightFiles, config: dict[str, Any]) -> CheckpointReader:
    if weights.kind == "safetensors":
        return SafetensorsCheckpoint(path, weights.files, weights.weight_map, config)
    if weights.kind == "torch_bin":
        from bcquant.io.torch_bin import TorchBinCheckpoint

        return TorchBinCheckpoint(path, weights.files, weights.weight_map, config)
    from bcquant.io.gguf import GgufCheckpoint

    return GgufCheckpoint(weights.files[0])
