"""Header and index of a package as values and bytes: docs/formats/bcq_package_v1.md.

What a package must hold for its model is in `package_rules`; files are opened by `package`.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

MAGIC = b"\x89BCQ\r\n\x1a\n"
VERSION = 1
MAX_SHARDS = 999
MAX_LAYERS = 4096
MAX_SIDE = 1 << 28  # of a packed weight
MAX_POSITIONS = (1 << 31) - 1
MAX_ENDS = 8
REQUIRED_FEATURES = 0  # bits that this reader knows

HEADER_BYTES = 128
ROW_BYTES = 64
NO_LAYER = 65535

EMBEDDING, HEAD, FINAL_NORM, POSITIONS, WINDOWS = 1, 2, 3, 4, 5
TOKENIZER, CHAT_TEMPLATE, CHAT_FRAMES, GENERATION, CERTIFICATE, ORIGIN = range(64, 70)
MODEL_KINDS = {
    EMBEDDING: "model.embed_tokens.weight",
    HEAD: "lm_head.weight",
    FINAL_NORM: "model.norm.weight",
    POSITIONS: "the positions' table",
    WINDOWS: "the windows",
    TOKENIZER: "the tokenizer",
    CHAT_TEMPLATE: "the chat template",
    CHAT_FRAMES: "the chat frames",
    GENERATION: "the generation defaults",
    CERTIFICATE: "the certificate",
    ORIGIN: "the origin",
}
_LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
WEIGHTS = {16 + i: f"{name}.weight" for i, name in enumerate(_LINEAR)}
BIASES = {32 + i: f"{name}.bias" for i, name in enumerate(_LINEAR)}
Q_NORM, K_NORM = 50, 51
NORMS = {
    48: "input_layernorm.weight",
    49: "post_attention_layernorm.weight",
    Q_NORM: "self_attn.q_norm.weight",
    K_NORM: "self_attn.k_norm.weight",
}
LAYER_KINDS = {**WEIGHTS, **BIASES, **NORMS}
BLOB_KINDS = frozenset({EMBEDDING, HEAD, *WEIGHTS})

_BLOB_ALIGN, _ALIGN = 16384, 64
_HEADER = struct.Struct("<8sIIIIQQQQQ32s32s")
_MODEL = struct.Struct("<8If3I2iI8i36s")
_COUNT = struct.Struct("<II")
_ROW = struct.Struct("<HHIQQ32sQ")
_LARGEST_F32 = 3.4028234e38


def alignment(kind: int) -> int:
    """Bytes that a section starts on a multiple of: a blob's are pages of Android."""
    return _BLOB_ALIGN if kind in BLOB_KINDS else _ALIGN


def section_name(kind: int, layer: int | None) -> str:
    """Canonical tensor name, or what the section is in words."""
    if layer is None:
        return MODEL_KINDS.get(kind, f"section kind {kind}")
    return f"model.layers.{layer}.{LAYER_KINDS.get(kind, f'section kind {kind}')}"


def index_bytes(num_sections: int) -> int:
    """Bytes of an index of so many sections."""
    return _MODEL.size + _COUNT.size + num_sections * ROW_BYTES


@dataclass(frozen=True)
class Header:
    """The first 128 bytes of every shard.

    Attributes:
        shard: 0 ..
        num_shards: 1 .. 999.
        file_bytes: of this file.
        index_bytes: of the index; 0 in other shards than the first.
        index_sha256: 32 bytes, the package's name for itself.
        required, optional: bits of features.
    """

    shard: int
    num_shards: int
    file_bytes: int
    index_bytes: int
    index_sha256: bytes
    required: int = 0
    optional: int = 0

    def to_bytes(self) -> bytes:
        """128 bytes."""
        at = HEADER_BYTES if self.shard == 0 else 0
        return _HEADER.pack(
            MAGIC, VERSION, self.shard, self.num_shards, 0, self.required, self.optional,
            self.file_bytes, at, self.index_bytes, self.index_sha256, bytes(32),
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> Header | str:
        """The header, or in a clause why it is none.

        Whether its numbers fit the file and the other shards is the caller's to compare.
        """
        if data[:8] != MAGIC:
            return "it does not begin as a package does"
        if len(data) != HEADER_BYTES:
            return "it ends within its header"
        (_, version, shard, num_shards, zero, required, optional, file_bytes, index_at, size,
         digest, rest) = _HEADER.unpack(data)  # fmt: skip
        if version != VERSION:
            return f"it has version {version} and this program reads {VERSION}; update bcquant"
        if required & ~REQUIRED_FEATURES:
            bits = [bit for bit in range(64) if required & ~REQUIRED_FEATURES & (1 << bit)]
            return f"it needs features {bits}, which this program does not have; update bcquant"
        if zero or any(rest):
            return "its header has values where zeros belong"
        if not 1 <= num_shards <= MAX_SHARDS or shard >= num_shards:
            return f"it says it is shard {shard} of {num_shards}"
        if (index_at, size > 0) != ((HEADER_BYTES, True) if shard == 0 else (0, False)):
            return f"its index would be {size} bytes at {index_at}"
        return cls(shard, num_shards, file_bytes, size, digest, required, optional)


@dataclass(frozen=True)
class ModelBlock:
    """What the model is: 128 bytes at the start of the index.

    Attributes:
        rms_norm_eps: a float32 above 0.
        is_alibi: ALiBi in place of rotary positions.
        ties_head: the head is the embedding.
        activations: 0 exact, 1 int8 by group, 2 int8 by token: what a runtime does by default.
        bos_id, pad_id: None = the model has none.
        eos_ids: at most 8.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    is_alibi: bool
    ties_head: bool
    activations: int
    bos_id: int | None = None
    pad_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def problem(self) -> str | None:
        """Why no package holds such a model, in a clause; None = one does."""
        sides = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_heads * head_dim": self.num_heads * self.head_dim,
        }
        for name, value in sides.items():
            if not 1 <= value <= MAX_SIDE:
                return f"{name} is {value}; 1 .. {MAX_SIDE} is needed"
        if not 1 <= self.num_layers <= MAX_LAYERS:
            return f"num_layers is {self.num_layers}; 1 .. {MAX_LAYERS} is needed"
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            return f"{self.num_heads} heads for {self.num_kv_heads} key/value heads"
        if self.head_dim % 16 or not 16 <= self.head_dim <= 256:
            return f"head_dim is {self.head_dim}; a multiple of 16 up to 256 is needed"
        if not 1 <= self.max_positions <= MAX_POSITIONS:
            return f"max_positions is {self.max_positions}; 1 .. {MAX_POSITIONS} is needed"
        if not 0 < self.rms_norm_eps <= _LARGEST_F32:  # false for NaN
            return f"rms_norm_eps is {self.rms_norm_eps}; a float32 above 0 is needed"
        if self.activations not in (0, 1, 2):
            return f"activations is {self.activations}; 0, 1 or 2 is needed"
        return self._ids_problem()

    def _ids_problem(self) -> str | None:
        if len(self.eos_ids) > MAX_ENDS:
            return f"it has {len(self.eos_ids)} end tokens; {MAX_ENDS} at most have a place"
        for name, value in (
            ("begin", self.bos_id), ("padding", self.pad_id), *(("end", i) for i in self.eos_ids),
        ):  # fmt: skip
            if value is not None and not 0 <= value < self.vocab_size:
                return f"the {name} token is {value}; the vocabulary has {self.vocab_size}"
        return None

    def to_bytes(self) -> bytes:
        """128 bytes; only of a model without `problem`."""
        ends = [*self.eos_ids, *[-1] * (MAX_ENDS - len(self.eos_ids))]
        return _MODEL.pack(
            self.vocab_size, self.hidden_size, self.intermediate_size, self.num_layers,
            self.num_heads, self.num_kv_heads, self.head_dim, self.max_positions,
            self.rms_norm_eps, self.is_alibi, self.ties_head, self.activations,
            -1 if self.bos_id is None else self.bos_id,
            -1 if self.pad_id is None else self.pad_id,
            len(self.eos_ids), *ends, bytes(36),
        )  # fmt: skip

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelBlock | str:
        """The model, or in a clause why it is none."""
        fields = _MODEL.unpack(data)
        eps, position, bits, activations, bos, pad, num_ends = fields[8:15]
        ends, rest = fields[15:-1], fields[-1]
        if position > 1 or bits > 1 or any(rest):
            return "its model block has values that this version does not know"
        if num_ends > MAX_ENDS or any(i != -1 for i in ends[num_ends:]):
            return f"its model block says that it has {num_ends} end tokens"
        if bos < -1 or pad < -1:
            return "its model block has a token below -1"
        names = [field.name for field in dataclasses.fields(cls)]
        model = cls(
            **dict(zip(names[:8], fields[:8], strict=True)),
            rms_norm_eps=eps,
            is_alibi=bool(position),
            ties_head=bool(bits),
            activations=activations,
            bos_id=None if bos == -1 else bos,
            pad_id=None if pad == -1 else pad,
            eos_ids=ends[:num_ends],
        )
        return model.problem() or model


@dataclass(frozen=True)
class Section:
    """One row of the index.

    Attributes:
        kind: of the table in the format's page.
        layer: None where the kind has none.
        shard: the file it lies in.
        offset: in that file.
        num_bytes: at least 1.
        sha256: of the bytes, 32 bytes.
    """

    kind: int
    layer: int | None
    shard: int
    offset: int
    num_bytes: int
    sha256: bytes

    @property
    def name(self) -> str:
        """Canonical tensor name, or what it is in words."""
        return section_name(self.kind, self.layer)

    def to_bytes(self) -> bytes:
        """64 bytes."""
        layer = NO_LAYER if self.layer is None else self.layer
        return _ROW.pack(self.kind, layer, self.shard, self.offset, self.num_bytes, self.sha256, 0)


def index_to_bytes(model: ModelBlock, sections: list[Section]) -> bytes:
    """The whole index."""
    rows = b"".join(section.to_bytes() for section in sections)
    return model.to_bytes() + _COUNT.pack(len(sections), 0) + rows


def index_from_bytes(data: bytes) -> tuple[ModelBlock, list[Section]] | str:
    """Model and rows of an index, or in a clause why it is none; rows are not compared yet."""
    fixed = index_bytes(0)
    if len(data) < fixed:
        return f"its index has {len(data)} bytes"
    count, zero = _COUNT.unpack(data[_MODEL.size : fixed])
    if zero or len(data) != index_bytes(count):
        return f"its index of {len(data)} bytes would hold {count} sections"
    model = ModelBlock.from_bytes(data[: _MODEL.size])
    if isinstance(model, str):
        return model
    sections = []
    for kind, layer, shard, offset, num_bytes, digest, rest in _ROW.iter_unpack(data[fixed:]):
        if rest:
            return "a row of its index has a value where a zero belongs"
        sections.append(
            Section(kind, None if layer == NO_LAYER else layer, shard, offset, num_bytes, digest)
        )
    return model, sections
