"""What mobile/tests/platform_driver.cpp says on a platform, and whether another says the same."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiny_tokenizers
from factory import make_tiny
from mobile_build import MOBILE, run
from mobile_cross import Target, compiled, need, runtime_objects
from tiny_quantized import quantize_folder

from bcquant.spec.quant_format import QuantFormat

HERE = Target("g++", "x86_64", ("-O2",))
DRIVER = MOBILE / "tests/platform_driver.cpp"
TEXT = "héllo 你好 模型😀 x=1;"
EXACT, INT8 = 0, 1
KV_F32, KV_INT8 = 0, 2
_STATE_HEADER, _BLOCK = 64, 16


def build(target: Target, source: Path, folder: Path, *link: str) -> Path:
    """A program over the whole runtime, linked without the C++ run-time library."""
    linker = target.compiler.replace("g++", "gcc")
    need(target.compiler, linker)
    made = folder / f"{source.stem}-{target.machine}"
    found = [compiled(target, source), *runtime_objects(target)]
    run([linker, *found, *link, "-pthread", "-lm", "-o", made])
    return made


@dataclass(frozen=True)
class Said:
    """One run: the caches are those of the prompt, as they were saved."""

    tier: str
    ids: str
    text: bytes
    logits: npt.NDArray[np.float32]
    drawn: str
    state: bytes


def spoken_package(folder: Path, export_mobile: Callable[..., Path]) -> Path:
    """A 4-bit llama of two layers with a tokenizer, as a package."""
    source = tiny_tokenizers.sentencepiece_folder(folder / "source", add_bos=True)
    make_tiny("llama", source, "F16", vocab_size=384, eos_token_id=None)
    return export_mobile(quantize_folder(source, "v1", QuantFormat(4, 32)), folder / "m.bcq")


def ask(
    command: Sequence[str | Path], package: Path, folder: Path, kv: int, activations: int
) -> Said:
    """What the driver, started by `command`, says."""
    state = folder / "state.bin"
    lines = run([*command, package, str(kv), str(activations), TEXT, state], timeout=300)
    told = dict(line.split(" ", 1) for line in lines.splitlines())
    logits = np.array([float.fromhex(word) for word in told["logits"].split(",")], np.float32)
    text = bytes.fromhex(told["text"])
    return Said(told["tier"], told["ids"], text, logits, told["drawn"], state.read_bytes())


def cache_codes(
    state: bytes, num_layers: int, kv_heads: int, head_dim: int
) -> npt.NDArray[np.int8]:
    """The int8 keys and values of a saved session (mobile/runtime/state.h), without scales."""
    (position,) = struct.unpack_from("<Q", state, 16)
    blocks = -(-position // _BLOCK)
    codes, scales = blocks * _BLOCK * head_dim * 2, blocks * _BLOCK * 2 * 4
    at = _STATE_HEADER + 4 * position
    parts = []
    for _ in range(num_layers * kv_heads):
        parts.append(np.frombuffer(state, np.int8, codes, at))
        at += codes + scales
    assert at + 32 == len(state)  # the digest is all that follows
    return np.concatenate(parts)
