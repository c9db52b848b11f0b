"""Packages of a tiny model made with `struct` from the format's page alone, sound or spoilt.

`tiny_package().build()` gives the bytes of its shards; whatever is changed before is sealed with
right digests, so a reader's later checks are reached.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bcquant.kernels.reference import half_weight, pack_weight

MAGIC = bytes([0x89, 0x42, 0x43, 0x51, 0x0D, 0x0A, 0x1A, 0x0A])
VOCAB, SIDE = 8, 16  # one layer, one head of 16
BLOBS = (1, 2, *range(16, 23))
MODEL = {
    "vocab_size": VOCAB, "hidden_size": SIDE, "intermediate_size": SIDE, "num_layers": 1,
    "num_heads": 1, "num_kv_heads": 1, "head_dim": SIDE, "max_positions": 64, "eps": 1e-6,
    "position": 0, "bits": 1, "activations": 0, "begin": 1, "padding": 0, "num_ends": 1,
    "ends": (2, -1, -1, -1, -1, -1, -1, -1), "rest": bytes(36),
}  # fmt: skip


@dataclass
class Row:
    """One section; what is None is filled in rightly. The data lies where it would in any case."""

    kind: int
    layer: int
    data: bytes
    shard: int = 0
    offset: int | None = None
    num_bytes: int | None = None
    sha256: bytes | None = None
    rest: int = 0


@dataclass
class TinyPackage:
    """A package to be spoilt; every field is what the file will say."""

    rows: list[Row]
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    num_shards: int = 1
    required: int = 0
    optional: int = 0
    count: int | None = None
    header: dict[str, Any] = field(default_factory=dict)

    def row(self, kind: int, layer: int = 65535) -> Row:
        return next(r for r in self.rows if (r.kind, r.layer) == (kind, layer))

    def build(self) -> list[bytes]:
        """The bytes of every shard."""
        index_bytes = 136 + 64 * len(self.rows)
        files = [bytearray(128 + (0 if i else index_bytes)) for i in range(self.num_shards)]
        index = self._model() + struct.pack(
            "<II", len(self.rows) if self.count is None else self.count, 0
        )
        for row in self.rows:
            file = files[row.shard] if row.shard < self.num_shards else bytearray()
            step = 16384 if row.kind in BLOBS else 64
            start = -(-len(file) // step) * step
            file += bytes(start - len(file)) + row.data
            offset = start if row.offset is None else row.offset
            size = len(row.data) if row.num_bytes is None else row.num_bytes
            digest = row.sha256 or hashlib.sha256(row.data).digest()
            index += struct.pack(
                "<HHIQQ32sQ", row.kind, row.layer, row.shard, offset, size, digest, row.rest
            )
        files[0][128 : 128 + index_bytes] = index
        name = hashlib.sha256(index).digest()
        for i, file in enumerate(files):
            file[:128] = self._header(i, len(file), 0 if i else index_bytes, name)
        return [bytes(file) for file in files]

    def write(self, folder: Path, name: str = "tiny") -> Path:
        """Write the shards; the path to open."""
        files = self.build()
        paths = [folder / f"{name}.bcq"]
        if len(files) > 1:
            paths = [folder / f"{name}-{i + 1:05d}-of-{len(files):05d}.bcq"
                     for i in range(len(files))]  # fmt: skip
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        return paths[0]

    def _model(self) -> bytes:
        *numbers, eps, position, bits, activations, begin, padding, num_ends, ends, rest = (
            self.model.values()
        )
        return struct.pack(
            "<8If3I2iI8i36s", *numbers, eps, position, bits, activations, begin, padding, num_ends,
            *ends, rest,
        )  # fmt: skip

    def _header(self, shard: int, file_bytes: int, index_bytes: int, name: bytes) -> bytes:
        fields = {
            "magic": MAGIC, "version": 1, "shard": shard, "num_shards": self.num_shards, "zero": 0,
            "required": self.required, "optional": self.optional, "file_bytes": file_bytes,
            "index_at": 0 if shard else 128, "index_bytes": index_bytes, "name": name,
            "rest": bytes(32), **self.header,
        }  # fmt: skip
        return struct.pack("<8sIIIIQQQQQ32s32s", *fields.values())


def tiny_package(ties_head: bool = True) -> TinyPackage:
    """A sound package of float16 blobs."""
    rng = np.random.default_rng(0)

    def blob(n: int) -> bytes:
        return pack_weight(half_weight(rng.standard_normal((n, SIDE)).astype(np.float16)))

    def vector(n: int) -> bytes:
        return rng.standard_normal(n).astype("<f4").tobytes()

    rows = [Row(1, 65535, blob(VOCAB))]
    if not ties_head:
        rows.append(Row(2, 65535, blob(VOCAB)))
    rows += [Row(3, 65535, vector(SIDE)), Row(4, 65535, vector(SIDE // 2))]
    rows += [Row(kind, 0, blob(SIDE)) for kind in range(16, 23)]
    rows += [Row(kind, 0, vector(SIDE)) for kind in (32, 48, 49, 50, 51)]
    rows += [Row(65, 65535, "{{ 'häh' }}".encode()), Row(67, 65535, b'{"temperature":0.5}')]
    package = TinyPackage(rows)
    package.model["bits"] = int(ties_head)
    return package
