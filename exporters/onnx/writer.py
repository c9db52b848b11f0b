"""Data files: where every weight goes, and the streaming of it, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from bcquant.io.atomic import AtomicFile, atomic_file

from .graph import Weight
from .proto import Place

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MB = 10**6
# Large tensors start on pages, so that a runtime maps them; small ones where SIMD loads like it.
_PAGE, _LINE, _LARGE = 4096, 64, 65536


class Layout:
    """Places of weights in data files, given in order.

    Attributes:
        places: weight name -> place.
        sizes: data file name -> bytes, in order; not empty.
    """

    def __init__(self, weights: Iterable[Weight], split_mb: int | None = None) -> None:
        """Lay the weights out one after another; a file is never larger than `split_mb` MB.

        A weight that is larger than that gets a file of its own, which `too_large` tells of.
        """
        self.places: dict[str, Place] = {}
        self.sizes: dict[str, int] = {DATA_FILE: 0}
        for weight in weights:
            if not weight.bytes_of:
                self._add(weight, split_mb)
            else:
                self.places[weight.name] = self.places[weight.bytes_of]

    def _add(self, weight: Weight, split_mb: int | None) -> None:
        name = list(self.sizes)[-1]
        align = _PAGE if weight.num_bytes >= _LARGE else _LINE
        offset = -(-self.sizes[name] // align) * align
        if split_mb is not None and offset and offset + weight.num_bytes > split_mb * MB:
            name, offset = f"{DATA_FILE}_{len(self.sizes)}", 0
        self.places[weight.name] = Place(name, offset)
        self.sizes[name] = offset + weight.num_bytes


def too_large(weights: Iterable[Weight], split_mb: int | None) -> list[str]:
    """Why the weights cannot be split so, one sentence for the largest; empty when they can."""
    if split_mb is None:
        return []
    large = max(weights, key=lambda weight: weight.num_bytes)
    if large.num_bytes <= split_mb * MB:
        return []
    needed = -(-large.num_bytes // MB)
    return [
        f"{large.name} alone has {needed} MB and data files may have {split_mb}; give --split-mb "
        f"{needed} or more, or --embedding-bits if it is the embedding"
    ]


def write_data(
    folder: Path,
    weights: Iterable[Weight],
    layout: Layout,
    progress: Callable[[str, int, int], None],
) -> None:
    """Write every data file.

    Args:
        folder: exists; the files appear in it complete.
        weights: those that the layout was made of, in the same order.
    Raises:
        CheckpointError: a tensor cannot be read.
        ExportError: a value cannot be held, or a file cannot be written.
    """
    stored = [weight for weight in weights if not weight.bytes_of]
    for name in layout.sizes:
        with atomic_file(folder / name) as file:
            position = 0
            for index, weight in enumerate(stored):
                place = layout.places[weight.name]
                if place.file == name:
                    file.write(bytes(place.offset - position))
                    position = place.offset + _write(file, weight)
                    progress(weight.name, index + 1, len(stored))


def _write(file: AtomicFile, weight: Weight) -> int:
    written = 0
    for part in weight.parts():
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        file.write(data)
        written += data.nbytes
    assert written == weight.num_bytes, f"{weight.name}: {written} bytes, not {weight.num_bytes}"
    return written
