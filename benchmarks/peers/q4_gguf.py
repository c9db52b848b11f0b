"""Q4_0 GGUF files: what is in one, a random one of a given shape, and one read as codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from numpy.typing import NDArray

from bcquant.io.checkpoint import open_checkpoint
from bcquant.models.gguf_config import gguf_name, permuted_rows
from bcquant.models.source import ModelSource
from bcquant.quant.gguf_blocks import from_gguf_blocks
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

BLOCK = 32  # columns that share a scale in Q4_0
# Bytes of a block, and the columns that it holds, by the type of a random file's head.
HEAD_TYPES = {"Q4_0": (18, 32), "Q8_0": (34, 32), "Q6_K": (210, 256)}


class Q4Source(ModelSource):
    """A Q4_0 GGUF whose Linears come as the codes that they are, not as floats.

    Args:
        group_size: 32 is the file itself. A larger one keeps the codes and the first scale of
            every group: the same work on other weights.
    """

    def __init__(self, path: Path, group_size: int = BLOCK) -> None:
        super().__init__(open_checkpoint(path))
        self._format = QuantFormat(4, group_size, True)
        self._blocks = {t.name: t for t in GGUFReader(path).tensors}

    def format_of(self, module: str) -> QuantFormat | None:
        """The grid of a Q4_0 module, None for any other type."""
        tensor = self._blocks.get(gguf_name(f"{module}.weight"))
        is_q4 = tensor is not None and tensor.tensor_type == GGMLQuantizationType.Q4_0
        return self._format if is_q4 else None

    def quantized(self, module: str) -> QuantizedTensor | None:
        """Codes and scales of a Q4_0 module, rows in canonical order."""
        if self.format_of(module) is None:
            return None
        data = self._blocks[gguf_name(f"{module}.weight")].data  # (N, K / 32 * 18)
        rows = np.arange(len(data))
        if module.endswith(("q_proj", "k_proj")):
            rows = permuted_rows(len(data), self.config.head_dim)
        found = from_gguf_blocks(data[rows], "Q4_0")
        codes = (found.codes_NK + self._format.symmetric_zero).astype(np.uint8)
        scales = np.ascontiguousarray(found.scales_NB[:, :: self._format.group_size // BLOCK])
        zeros = np.full(scales.shape, self._format.symmetric_zero, np.uint8)
        return QuantizedTensor(codes, scales, zeros, self._format)


def describe(path: Path) -> tuple[int, str]:
    """Bytes that one decoded token reads, and the tensor types with their sizes.

    The embedding is read whole only where it is the head too.
    """
    tensors = GGUFReader(path).tensors
    is_tied = all(t.name != "output.weight" for t in tensors)
    sizes: dict[str, int] = {}
    ends = []
    read = 0
    for tensor in tensors:
        kind, num_bytes = tensor.tensor_type.name, int(tensor.n_bytes)
        if tensor.name in ("token_embd.weight", "output.weight"):
            ends.append(f"{tensor.name} {kind} {num_bytes / 1e6:.1f} MB")
        else:
            sizes[kind] = sizes.get(kind, 0) + num_bytes
        read += num_bytes if tensor.name != "token_embd.weight" or is_tied else 0
    parts = [f"{kind} {num_bytes / 1e6:.1f} MB" for kind, num_bytes in sizes.items()]
    return read, f"blocks {' + '.join(parts)}, {', '.join(ends)}{' (tied)' if is_tied else ''}"


def write_random(
    path: Path, *, hidden: int, inner: int, heads: int, layers: int, vocab: int, head_type: str
) -> None:
    """A random LLaMA of this shape, Linears in Q4_0, without a tokenizer."""
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(0)

    def add(name: str, n: int, k: int, kind: str = "Q4_0") -> None:
        data = _random_blocks(rng, n, k, kind)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind])

    ones = np.ones(hidden, np.float32)
    add("token_embd.weight", vocab, hidden)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{prefix}{name}.weight", hidden, hidden)
        add(f"{prefix}ffn_gate.weight", inner, hidden)
        add(f"{prefix}ffn_up.weight", inner, hidden)
        add(f"{prefix}ffn_down.weight", hidden, inner)
        writer.add_tensor(f"{prefix}attn_norm.weight", ones)
        writer.add_tensor(f"{prefix}ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    add("output.weight", vocab, hidden, head_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _random_blocks(rng: np.random.Generator, n: int, k: int, kind: str) -> NDArray[np.uint8]:
    """Rows of blocks: random codes, and a scale that keeps activations near 1."""
    block_bytes, columns = HEAD_TYPES[kind]
    count = n * k // columns
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    spread = {"Q4_0": 4.6, "Q8_0": 74.0, "Q6_K": 18.0 * 74.0}[kind]  # of a code, standard deviation
    scale = np.full(count, 1.0 / (spread * np.sqrt(k)), np.float16).view(np.uint8).reshape(-1, 2)
    at = block_bytes - 2 if kind == "Q6_K" else 0
    blocks[:, at : at + 2] = scale
    return blocks.reshape(n, -1)
