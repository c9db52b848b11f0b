"""Activations on disk: read and written by range, never mapped, so they do not count as memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from bcquant.errors import CheckpointError, ExportError


class ScratchArray:
    """A float32 array (S, T, C) in a file of its own.

    Owns the file descriptor. `discard` removes the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], keep: bool = False) -> None:
        """Create the file; what a run that was cut off left under its name is dropped.

        Args:
            keep: open what an earlier run has made durable instead.
        Raises:
            CheckpointError: with `keep`, the file has another size.
            ExportError: it cannot be created (read-only, no space).
        """
        self.path, self.shape = path, shape
        self._row_bytes = shape[1] * shape[2] * 4
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
        except OSError as error:
            raise ExportError(
                f"{path}: cannot be opened ({error.strerror}); check the folder"
            ) from error
        size = os.fstat(self._fd).st_size
        if size not in (0, shape[0] * self._row_bytes):
            self.close()
            raise CheckpointError(
                f"{path}: {size} bytes, but {shape[0] * self._row_bytes} are needed; "
                "run with --restart"
            )

    def write(self, start: int, values_STC: torch.Tensor) -> None:
        """Store float32 values (s, T, C) as sequences start .. start + s.

        Raises:
            ExportError: no space left, or the device failed.
        """
        data = values_STC.contiguous().numpy().data.cast("B")
        offset = start * self._row_bytes
        try:
            while data:
                done = os.pwrite(self._fd, data, offset)
                data, offset = data[done:], offset + done
        except OSError as error:
            raise ExportError(
                f"{self.path}: writing failed ({error.strerror}); "
                "free space, then run the same command again"
            ) from error

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Sequences start .. stop, float32, shape (stop - start, T, C)."""
        array = np.empty((stop - start, *self.shape[1:]), np.float32)
        data = array.data.cast("B")
        offset = start * self._row_bytes
        while data:
            try:
                done = os.preadv(self._fd, [data], offset)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: reading failed ({error.strerror}); check the device"
                ) from error
            if done == 0:
                raise CheckpointError(f"{self.path}: ends at byte {offset}; run with --restart")
            data, offset = data[done:], offset + done
        return torch.from_numpy(array)

    def sync(self) -> None:
        """Make what was written durable."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise ExportError(
                f"{self.path}: fsync failed ({error.strerror}); check the device"
            ) from error

    def close(self) -> None:
        """Close the file; it stays on disk."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Close and remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)
