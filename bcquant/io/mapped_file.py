"""A read-only mapped file whose pages do not pile up in the resident set."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError
from bcquant.io.closing import Closing

# Pages are dropped after every chunk, so a copy costs its destination plus this much.
CHUNK_BYTES = 16 << 20
_LFS_POINTER = b"version https://git-lfs"


class MappedFile(Closing):
    """A regular, non-empty file mapped for reading; close it or use it as a context manager.

    Attributes:
        path: the file.
        size: its length in bytes when it was opened.
    Raises:
        CheckpointError: missing, unreadable, empty, not a regular file, or a Git LFS pointer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A FIFO would block in open(), so the kind is checked first.
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise CheckpointError(f"{path}: not a regular file; give a checkpoint file")
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise CheckpointError(f"{path}: the file is empty; download it again")
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: the file does not exist; download it again") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
        if self.size < 1024 and self._map[: len(_LFS_POINTER)] == _LFS_POINTER:
            self.close()
            raise CheckpointError(
                f"{path}: this is a Git LFS pointer, not the file itself; run 'git lfs pull'"
            )

    def bytes_at(self, offset: int, num_bytes: int) -> bytes:
        """A copy of `num_bytes` bytes from `offset`.

        Raises:
            CheckpointError: the range is not inside the file.
        """
        self._check(offset, num_bytes)
        data = self._map[offset : offset + num_bytes]
        self._drop(offset, num_bytes)
        return data

    def copy_into(self, out: npt.NDArray[np.uint8], offset: int) -> None:
        """Fill `out` (contiguous uint8, 1-D) from `offset`, dropping pages behind the copy.

        Raises:
            CheckpointError: the range is not inside the file, or the file shrank.
        """
        self._check(offset, out.size)
        for done in range(0, out.size, CHUNK_BYTES):
            count = min(CHUNK_BYTES, out.size - done)
            start = offset + done
            out[done : done + count] = np.frombuffer(self._map, np.uint8, count, start)
            self._drop(start, count)

    def close(self) -> None:
        """Unmap; closing twice is fine."""
        self._map.close()

    def _check(self, offset: int, num_bytes: int) -> None:
        if self._map.closed:
            raise CheckpointError(f"{self.path}: read after the checkpoint was closed")
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.size:
            raise CheckpointError(
                f"{self.path}: bytes {offset} to {offset + num_bytes} are needed but the file has "
                f"{self.size}; download it again"
            )
        # Touching a mapped page beyond the end kills the process, so look at the file as it is now.
        if self._map.size() < self.size:
            raise CheckpointError(
                f"{self.path}: the file shrank from {self.size} to {self._map.size()} bytes while "
                "it was in use; do not change a checkpoint that is being read"
            )

    def _drop(self, offset: int, num_bytes: int) -> None:
        if num_bytes and hasattr(mmap, "MADV_DONTNEED"):
            start = offset - offset % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + num_bytes - start)
