"""How many bits a stored model spends on its decoder, and how many bytes on everything."""

from __future__ import annotations

from pathlib import Path

from bcquant.eval.sweep.inputs import decoder_modules
from bcquant.models.source import ModelSource

_FLOAT_BITS = {"F32": 32, "F16": 16, "BF16": 16}
_WEIGHTS = (".safetensors", ".bin", ".gguf")


def num_decoder_weights(source: ModelSource) -> int:
    """Weights in the Linears of the blocks."""
    shapes = [source.shape(f"{module}.weight") for module in decoder_modules(source)]
    return sum(n * k for n, k in shapes)


def decoder_bits(source: ModelSource) -> float:
    """Stored bits of the Linears of the blocks: codes, scales, and zeros where a grid has them.

    What a format pads or repeats (symmetric zeros, g_idx) says nothing new and is not counted.
    """
    blocks = _gguf_bytes(source)
    total = 0.0
    for module in decoder_modules(source):
        name = f"{module}.weight"
        n, k = source.shape(name)
        fmt, dtype = source.format_of(module), source.stored_dtype(name)
        if fmt is not None:
            total += fmt.bits_per_weight(k) * n * k
        elif dtype in _FLOAT_BITS:
            total += _FLOAT_BITS[dtype] * n * k
        else:
            total += 8 * blocks[name]
    return total


def stored_bytes(model: Path) -> int:
    """Bytes of the weight files of a model."""
    if model.is_file():
        return model.stat().st_size
    return sum(path.stat().st_size for path in model.iterdir() if path.suffix in _WEIGHTS)


def _gguf_bytes(source: ModelSource) -> dict[str, int]:
    """Bytes of each Linear of a GGUF file by its canonical name; {} for other kinds."""
    if source.reader.kind != "gguf":
        return {}
    from bcquant.io.gguf_header import read_header
    from bcquant.models.gguf_config import gguf_name

    tensors = read_header(source.path).tensors
    names = [f"{module}.weight" for module in decoder_modules(source)]
    return {name: tensors[gguf_name(name)].num_bytes for name in names}
