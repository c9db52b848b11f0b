"""Which sections a package must hold for its model, of what size, and in which places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bcquant.io.package_index import (
    BIASES,
    BLOB_KINDS,
    CERTIFICATE,
    CHAT_FRAMES,
    CHAT_TEMPLATE,
    EMBEDDING,
    FINAL_NORM,
    GENERATION,
    HEAD,
    HEADER_BYTES,
    K_NORM,
    NO_LAYER,
    NORMS,
    ORIGIN,
    POSITIONS,
    Q_NORM,
    TOKENIZER,
    WEIGHTS,
    WINDOWS,
    Header,
    ModelBlock,
    Section,
    alignment,
    section_name,
)

TEXT_KINDS = (TOKENIZER, CHAT_TEMPLATE, CHAT_FRAMES, GENERATION, CERTIFICATE, ORIGIN)
Key = tuple[int, int | None]


def needed_sections(model: ModelBlock) -> set[Key]:
    """(kind, layer) of everything that a model cannot be computed without."""
    layers = range(model.num_layers)
    required = [*WEIGHTS, *(kind for kind in NORMS if kind not in (Q_NORM, K_NORM))]
    ends = (EMBEDDING, FINAL_NORM, POSITIONS) + (() if model.ties_head else (HEAD,))
    return {(kind, None) for kind in ends} | {(k, layer) for k in required for layer in layers}


def allowed_sections(model: ModelBlock) -> set[Key]:
    """(kind, layer) of what may be there besides."""
    layers = range(model.num_layers)
    optional = (*BIASES, Q_NORM, K_NORM)
    return {(kind, None) for kind in (WINDOWS, *TEXT_KINDS)} | {
        (kind, layer) for kind in optional for layer in layers
    }


def tensor_shape(model: ModelBlock, kind: int) -> tuple[int, ...] | None:
    """Shape of a section's values: (N, K) of a blob, (n,) of 4-byte values; None for texts."""
    hidden, inner = model.hidden_size, model.intermediate_size
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    linear = ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q), (inner, hidden),
              (inner, hidden), (hidden, inner))  # fmt: skip
    if kind in (EMBEDDING, HEAD):
        return model.vocab_size, hidden
    if kind in WEIGHTS:
        return linear[kind - min(WEIGHTS)]
    if kind in BIASES:
        return linear[kind - min(BIASES)][:1]
    if kind in NORMS or kind == FINAL_NORM:
        return (model.head_dim if kind in (Q_NORM, K_NORM) else hidden,)
    if kind == POSITIONS:
        return (model.num_heads if model.is_alibi else model.head_dim // 2,)
    return (model.num_layers,) if kind == WINDOWS else None


def contents_problem(model: ModelBlock, sections: Sequence[Section]) -> str | None:
    """Why these are not the sections of this model, in a clause; None = they are.

    Blobs are compared by their headers, elsewhere.
    """
    keys = [(s.kind, NO_LAYER if s.layer is None else s.layer) for s in sections]
    for before, after in itertools.pairwise(keys):
        if before >= after:
            twice = "twice" if before == after else "in the wrong order"
            return f"it lists {section_name(after[0], _layer(after[1]))} {twice}"
    found = {(s.kind, s.layer) for s in sections}
    needed = needed_sections(model)
    for key in sorted(needed - found, key=str):
        return f"{section_name(*key)} is missing"
    for key in sorted(found - needed - allowed_sections(model), key=str):
        return f"{section_name(*key)} is no part of its model"
    for layer in range(model.num_layers):
        if ((Q_NORM, layer) in found) != ((K_NORM, layer) in found):
            return f"layer {layer} has a norm for one of q and k heads"
    for section in sections:
        shape = tensor_shape(model, section.kind)
        is_vector = shape is not None and section.kind not in BLOB_KINDS
        if is_vector and shape is not None and section.num_bytes != 4 * shape[0]:
            return f"{section.name} has {section.num_bytes} bytes; {4 * shape[0]} are needed"
    return None


def places_problem(headers: Sequence[Header], sections: Sequence[Section]) -> str | None:
    """Why the sections cannot lie where the index says, in a clause; None = they can.

    Args:
        headers: of all shards, in order; `file_bytes` is what each file really has.
    """
    ends = [HEADER_BYTES + header.index_bytes for header in headers]
    last_shard = 0
    for section in sections:
        if section.shard >= len(headers):
            return f"{section.name} lies in shard {section.shard}; there are {len(headers)}"
        if section.shard < last_shard:
            return f"{section.name} lies before the one that it follows"
        last_shard = section.shard
        size = headers[section.shard].file_bytes
        if section.offset > size or not 1 <= section.num_bytes <= size - section.offset:
            return (
                f"{section.name} would be {section.num_bytes} bytes at {section.offset} of a file "
                f"of {size}"
            )
        if section.offset % alignment(section.kind):
            return f"{section.name} begins at {section.offset}, no multiple that it needs"
        if section.offset < ends[section.shard]:
            return f"{section.name} overlaps what lies before it"
        ends[section.shard] = section.offset + section.num_bytes
    for header, end in zip(headers, ends, strict=True):
        if end != header.file_bytes:
            return f"shard {header.shard} goes on after its last section"
    return None


def _layer(number: int) -> int | None:
    return None if number == NO_LAYER else number
