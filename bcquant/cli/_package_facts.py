"""What a package holds, as plain values: for `bcquant inspect NAME.bcq` and its --json.

Only headers, index and texts are read. Whether the bytes are whole is `bcquant verify`'s to say,
and whether a signature is good the runtime's (`bcq-run --key`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bcquant.errors import BcquantError, CheckpointError
from bcquant.io.package import Package, shard_names
from bcquant.io.package_index import (
    BIASES,
    BLOB_KINDS,
    CERTIFICATE,
    CHAT_FRAMES,
    CHAT_TEMPLATE,
    FINAL_NORM,
    GENERATION,
    LAYER_KINDS,
    MODEL_KINDS,
    NORMS,
    ORIGIN,
    TOKENIZER,
    WINDOWS,
    Section,
)
from bcquant.io.package_rules import TEXT_KINDS
from bcquant.io.package_tokenizer import read_tokenizer

DEFAULT_CONTEXT = 2048
_ACTIVATIONS = ("exact", "int8", "int8_token")
_TOKENIZERS = {1: "SentencePiece BPE", 2: "byte-level BPE", 3: "BPE over characters"}
_PRE_TOKENIZERS = {1: "gpt-2", 2: "smollm", 3: "llama3", 4: "qwen2", 5: "smollm (tokenizers)"}


@dataclass(frozen=True)
class SectionGroup:
    """Sections that are alike but for their layer.

    Attributes:
        name: a tensor's without its layer, or what the section is in words.
        format: of each; a weight's bits, group size and zeros.
        num_weights: of all, 0 for texts.
    """

    name: str
    format: str
    count: int
    num_bytes: int
    num_weights: int


def package_facts(package: Package, context: int | None) -> dict[str, Any]:
    """Everything that is known without computing.

    Args:
        context: tokens of the session that is planned; None = 2048, or what the model has.
    Raises:
        CheckpointError: a text inside is damaged.
    """
    model = package.model
    groups = section_groups(package)
    num_weights = sum(group.num_weights for group in groups)
    weight_bytes = sum(group.num_bytes for group in groups if group.num_weights)
    files, signature = package_files(package), package.signature()
    return {
        "path": str(package.path),
        "kind": "package",
        "format": "bcq_package_v1",
        "sha256": package.sha256,
        "shards": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
        "file_bytes": sum(file.stat().st_size for file in files),
        "model": {**asdict(model), "activations": _ACTIVATIONS[model.activations]},
        "num_weights": num_weights,
        "bits_per_weight": 8 * weight_bytes / num_weights,
        "sections": [asdict(group) for group in groups],
        "tokenizer": _tokenizer(package),
        "chat": _chat(package),
        "generation": package.json(GENERATION),
        "certificate": _certificate(package),
        "origin": package.json(ORIGIN),
        "signed_by": None if signature is None else signature.public_key.hex(),
        "plan": _plan(package, context or min(DEFAULT_CONTEXT, model.max_positions)),
    }


def package_files(package: Package) -> tuple[Path, ...]:
    """Every shard's file, in order."""
    if all(section.shard == 0 for section in package.sections):
        return (package.path,)
    # Shards are opened under these names alone.
    stem, _, count = package.path.stem.rpartition("-00001-of-")
    return tuple(package.path.parent / name for name in shard_names(f"{stem}.bcq", int(count)))


def section_groups(package: Package) -> list[SectionGroup]:
    """Sections with the same name and format share a row, in the order of their kinds."""
    found: dict[tuple[str, str], list[Section]] = {}
    for section in package.sections:
        name = LAYER_KINDS.get(section.kind) or MODEL_KINDS[section.kind]
        found.setdefault((name, _format(package, section)), []).append(section)
    return [_group(package, key, sections) for key, sections in found.items()]


def _group(package: Package, key: tuple[str, str], sections: Iterable[Section]) -> SectionGroup:
    count = num_bytes = num_weights = 0
    for section in sections:
        count, num_bytes = count + 1, num_bytes + section.num_bytes
        shape = package.shapes.get(section)
        if shape is not None:
            num_weights += shape.out_features * shape.in_features
        elif section.kind in (FINAL_NORM, *BIASES, *NORMS):
            num_weights += section.num_bytes // 4
    return SectionGroup(*key, count, num_bytes, num_weights)


def _format(package: Package, section: Section) -> str:
    if section.kind in BLOB_KINDS:
        shape = package.shapes[section]
        if shape.bits == 16:
            return "float16"
        whole = shape.group_size == shape.in_features
        group = "one group a row" if whole else f"groups of {shape.group_size}"
        return f"{shape.bits}-bit, {group}, {'with zeros' if shape.has_zeros else 'symmetric'}"
    if section.kind == TOKENIZER:
        return "tables"
    if section.kind in TEXT_KINDS:
        return "text"
    return "uint32" if section.kind == WINDOWS else "float32"


def _tokenizer(package: Package) -> dict[str, Any] | None:
    section = package.find(TOKENIZER)
    if section is None:
        return None
    where = f"{package.path}: the tokenizer"
    tables = read_tokenizer(package.data(section), package.model.vocab_size, where)
    return {
        "kind": _TOKENIZERS[tables.kind],
        "pre_tokenizer": _PRE_TOKENIZERS.get(tables.pre_tokenizer),
        "num_tokens": tables.num_tokens,
        "num_merges": len(tables.merges),
        "begin_id": tables.begin_id,
        "end_id": tables.end_id,
        "unknown_id": tables.unknown_id,
    }


def _chat(package: Package) -> dict[str, Any]:
    """What a conversation is written with; "roles" of the frames, null where only Jinja knows."""
    frames = package.json(CHAT_FRAMES)
    roles = None
    if frames is not None:
        named = frames.get("roles")
        if not isinstance(named, dict):
            raise CheckpointError(
                f"{package.path}: the chat frames have no roles; export the package again"
            )
        roles = sorted(named)
    return {"has_template": package.find(CHAT_TEMPLATE) is not None, "roles": roles}


def _certificate(package: Package) -> dict[str, Any] | None:
    """The verdict and every check's figures; the rest stays in the section."""
    found = package.json(CERTIFICATE)
    if found is None:
        return None
    checks = found.get("checks")
    rows = [row for row in checks if isinstance(row, dict)] if isinstance(checks, list) else []
    if not rows or not all(isinstance(row.get("figures"), dict) for row in rows):
        raise CheckpointError(
            f"{package.path}: the certificate lists no checks; `bcquant verify` writes one anew"
        )
    return {
        "verdict": found.get("verdict"),
        "backend": found.get("backend"),
        "versions": found.get("versions"),
        "checks": [{key: row.get(key) for key in ("name", "passed", "figures")} for row in rows],
    }


def _plan(package: Package, context: int) -> dict[str, Any]:
    """Bytes of a model with one session of float16 caches, or why there is no plan."""
    from bcquant.kernels import runtime_native

    said: dict[str, Any] = {"context": context, "kv_type": "f16", "problem": None}
    try:
        with runtime_native.open_package(package.path, checks_digests=False) as opened:
            return said | opened.plan(context)._asdict()
    except BcquantError as error:
        return said | {"problem": str(error)}
