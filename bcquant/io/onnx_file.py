"""The graph of an ONNX file, without its data files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.errors import CheckpointError, ConfigError
from bcquant.io.mapped_file import MappedFile

if TYPE_CHECKING:
    from onnx import ModelProto


def read_onnx(path: Path) -> ModelProto:
    """Parse model.onnx; external data is neither read nor looked for.

    Raises:
        CheckpointError: the file is missing, empty, or no ONNX.
        ConfigError: the onnx package is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(f"{path}: reading it needs the onnx package; pip install onnx") from error
    with MappedFile(path):
        pass  # its own sentences for what is missing or empty
    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as error:
        raise CheckpointError(
            f"{path}: not a readable ONNX file ({error}); export again"
        ) from error
