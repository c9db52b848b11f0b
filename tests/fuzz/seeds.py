"""Seeds of the fuzzers: tiny packages of every family and format, tokenizers of every kind, chats.

    PYTHONPATH=tests python -m fuzz.seeds FOLDER

writes FOLDER/package and FOLDER/tokenizer, in the forms of mobile/fuzz/*.cpp. To renew corpus/:

    package_fuzz -set_cover_merge=1 -use_counters=0 NEW tests/fuzz/corpus/package FOLDER/package
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factory import FAMILIES, make_tiny
from mobile_tokenizer_cases import CASES
from tiny_quantized import quantize_folder

from bcquant.exporters.mobile.job import MobileJob
from bcquant.exporters.mobile.options import MobileOptions
from bcquant.exporters.mobile.tokenizer_section import tokenizer_section
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

_HEADER, _TABLE, _ROW = 128, 264, 64
_CHECK_ALL, _BY_FILE, _STATE = 4, 8, 64  # flags of package_fuzz.cpp
_CHAT, _TAKES_ALL = 8, 16  # of tokenizer_fuzz.cpp
_SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "vocab_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
_FORMATS = {
    "sym4": ("v1", QuantFormat(4, 32)),
    "asym4": ("v2", QuantFormat(4, 32, False)),
    "row8": ("compressed-tensors", QuantFormat(8, -1)),
    "asym3": ("v2", QuantFormat(3, 32, False)),
    "sym2": ("v1", QuantFormat(2, -1)),
    "w8a8": ("int-quantized", QuantFormat(8, -1, True, "int8_token")),
}
_TEXTS = ("Hello  world, it's 12345 \n\n x 你好", "<s>a</s> == <u12>▁ 😀", "", "   ==")
_FRAMES: tuple[dict[str, Any], ...] = (
    {"bos": "<s>", "no_system": "", "roles": {"system": ["<S>", "\n"], "user": ["<U>", "\n"],
     "assistant": ["<A>", "</s>"]}, "generate": "<A>"},
    {"bos": "", "no_system": "é\ud83d\ude00\"\\\u0001", "roles": {"user": ["", ""],
     "assistant": ["", ""]}, "generate": "", "trim": True},
)  # fmt: skip


def packed(shards: list[bytes], flags: int, state: bytes = b"") -> bytes:
    """Files of a package as package_fuzz.cpp reads them: without padding."""
    first = shards[0]
    (index_bytes,) = struct.unpack_from("<Q", first, 56)
    parts = [bytes([flags]), first[: _HEADER + index_bytes]]
    for at in range(_TABLE, _HEADER + index_bytes, _ROW):
        shard, offset, size = struct.unpack_from("<IQQ", first, at + 4)
        parts.append(shards[shard][offset : offset + size])
    return b"".join([*parts, state])


def saved_state(kv_heads: int, head_dim: int, position: int) -> bytes:
    """A saved session of one layer with int8 caches, but for its digests (runtime/state.h)."""
    head = struct.pack("<8sIIQ32sQ", b"BCQSTATE", 1, 2, position, bytes(32), 0)
    blocks = -(-position // 16)
    caches = blocks * 16 * head_dim * 2 + blocks * 16 * 4 * 2
    return head + struct.pack(f"<{position}i", *range(position)) + bytes(kv_heads * caches)


def _exported(folder: Path, target: Path, **options: int) -> list[bytes]:
    """Files of the package of a checkpoint."""
    with open_model(folder) as source:
        job = MobileJob(source, MobileOptions(**options))
        plan = job.validate(lambda *told: None)
        if plan.refusals:
            raise SystemExit(f"{folder}: {plan.refusals}")
        job.write(target, lambda *told: None)
    return [path.read_bytes() for path in sorted(target.parent.glob(f"{target.stem}*.bcq"))]


def package_seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, input of package_fuzz)."""
    for number, family in enumerate(sorted(FAMILIES)):
        over = dict(_SMALL)
        if FAMILIES[family].get("num_key_value_heads", 1) > 1:
            over["num_key_value_heads"] = 2
        if "head_dim" in FAMILIES[family]:
            over["head_dim"] = 16
        windows = {"use_sliding_window": True, "max_window_layers": 0} if family == "qwen2" else {}
        source = make_tiny(family, folder / family, "F16", **over, **windows)
        if family != "llama":  # which stays float16; codes of 2 bits are a third of its size
            quantize_folder(source, *_FORMATS["sym2"])
        shards = _exported(source, folder / f"{family}.bcq")
        yield family, packed(shards, number % 3 | (_CHECK_ALL, _BY_FILE, 0)[number % 3])
    for number, (name, (target, fmt)) in enumerate(_FORMATS.items()):
        source = make_tiny("llama", folder / name, "F16", **_SMALL)
        shards = _exported(quantize_folder(source, target, fmt), folder / f"{name}.bcq")
        yield name, packed(shards, number % 3 | (number % 4) << 4)
        if number == 0:
            yield "state", packed(shards, 2 | _STATE, saved_state(2, 16, 3))
            yield "two_shards", packed(_two_shards(shards[0]), _CHECK_ALL)


def _two_shards(data: bytes) -> list[bytes]:
    """The same sections, those of the second half in a file of their own."""
    first = bytearray(data)
    (index_bytes,) = struct.unpack_from("<Q", first, 56)
    rows = range(_TABLE, _HEADER + index_bytes, _ROW)
    moved = [at for at in rows if at >= rows[len(rows) // 2]]
    second = bytearray(_HEADER)
    for at in moved:
        kind, offset, size = struct.unpack_from("<H6xQQ", first, at)
        step = 16384 if kind in (1, 2) or 16 <= kind <= 22 else 64
        second += bytes(-len(second) % step)
        struct.pack_into("<IQ", first, at + 4, 1, len(second))
        second += data[offset : offset + size]
    struct.pack_into("<I", first, 16, 2)
    kept = [struct.unpack_from("<QQ", first, at + 8) for at in rows if at not in moved]
    struct.pack_into("<Q", first, 40, max(offset + size for offset, size in kept))
    return [bytes(first), bytes(second)]


def _cut_down(section: bytes, most: int) -> bytes:
    """The first tokens of a section and the merges between them, as a small section."""
    kind, bits, rule, num_tokens, merges, unknown, size, begin, end, _ = struct.unpack_from(
        "<5IiI2iI", section
    )
    kept = min(most, num_tokens)
    begins = struct.unpack_from(f"<{num_tokens + 1}I", section, 40)
    at = 40 + 4 * (num_tokens + 1)
    scores = section[at : at + 4 * kept] if kind == 1 else b""
    at += 4 * num_tokens if kind == 1 else 0
    pairs = list(struct.iter_unpack("<2I", section[at : at + 8 * merges]))
    at += 8 * merges
    texts = section[at + num_tokens :]
    words = [texts[a:b] for a, b in itertools.pairwise(begins[: kept + 1])]
    pairs = [p for p in pairs if max(p) < kept and words[p[0]] + words[p[1]] in words]
    unknown, begin, end = (token if token < kept else -1 for token in (unknown, begin, end))
    bits &= ~((16 if begin < 0 else 0) | (32 if end < 0 else 0))
    size = begins[kept]
    return b"".join([
        struct.pack("<5IiI2iI", kind, bits, rule, kept, len(pairs), unknown, size, begin, end, 0),
        struct.pack(f"<{kept + 1}I", *begins[: kept + 1]), scores,
        *(struct.pack("<2I", *pair) for pair in pairs), section[at : at + kept], texts[:size],
    ])  # fmt: skip


def tokenizer_seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, input of tokenizer_fuzz)."""
    for number, (name, make) in enumerate(CASES.items()):
        made = make(folder / name)
        section = tokenizer_section(made, made.vocab_size, name)
        text = _TEXTS[number % len(_TEXTS)].encode()
        small = _cut_down(section, 300)
        if len(section) < 6000:
            yield name, bytes([number % 8]) + section + text
        yield f"{name}_small", bytes([3]) + small + text
        if number == 0:
            yield f"{name}_alone", bytes([_TAKES_ALL]) + small
    for number, frames in enumerate(_FRAMES):
        text = json.dumps(frames, ensure_ascii=number == 1).encode()
        contents = "\0 Be brief. \0\u2003你好\n".encode()
        yield f"chat{number}", bytes([_CHAT | number << 4]) + text + contents


def main(target: Path) -> None:
    """Write every seed below `target`."""
    for kind, seeds in (("package", package_seeds), ("tokenizer", tokenizer_seeds)):
        (target / kind).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in seeds(Path(folder)):
                (target / kind / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
