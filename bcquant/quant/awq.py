"""AWQ checkpoint tensors in the `gemm` layout -> the canonical quantized weight, losslessly.

Read and not written: the same integers go out as GPTQ, compressed-tensors, ONNX or GGUF.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.packing import num_words, unpack_bits
from bcquant.quant.stored_tensors import AnyArray, Tensors, need, to_f16
from bcquant.quant.tensors import QuantizedTensor, U8Array
from bcquant.spec.quant_format import QuantFormat

BITS = 4  # the only width that the layout is defined for
PER_WORD = 8
# Nibble i of a word holds column NIBBLE_ORDER[i] of its eight, so column j sits in nibble
# COLUMN_NIBBLE[j].
NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
COLUMN_NIBBLE = tuple(NIBBLE_ORDER.index(column) for column in range(PER_WORD))


def from_awq(tensors: Tensors, fmt: QuantFormat) -> QuantizedTensor:
    """The canonical weight of one Linear of an AWQ `gemm` checkpoint.

    Args:
        tensors: qweight int32 (K, N/8), qzeros int32 (G, N/8), scales (G, N); a bias is left
            alone.
        fmt: as the checkpoint's config says: 4 bits; symmetric = its zero_point is false.
    Raises:
        CheckpointError: a tensor is missing or contradicts another or the format.
        ConfigError: `fmt` is not one that AWQ has.
    Source: docs/formats/awq_gemm.md.
    """
    if fmt.bits != BITS or fmt.activation != "none":
        raise ConfigError(
            f"AWQ gemm is {BITS}-bit with float activations, not {fmt.bits}-bit with "
            f"{fmt.activation}"
        )
    qweight, qzeros, scales = (need(tensors, s) for s in ("qweight", "qzeros", "scales"))
    if scales.ndim != 2 or not scales.size or scales.shape[1] % PER_WORD:
        raise CheckpointError(
            f"scales have shape {list(scales.shape)}; (G, N) with N a multiple of {PER_WORD} is "
            "needed"
        )
    groups, n = scales.shape
    k = qweight.shape[0] if qweight.ndim == 2 else 0
    width = fmt.group_width(k)
    if k == 0 or width * groups != k:
        raise CheckpointError(
            f"scales have {groups} groups for a qweight of {list(qweight.shape)}; groups of "
            f"{width} columns do not fill it. Is the config's group_size right?"
        )
    _check_words("qweight", qweight, (k, n))
    _check_words("qzeros", qzeros, (groups, n))
    zeros_NG = np.ascontiguousarray(_unpack(qzeros, n).T)
    if fmt.symmetric and not bool((zeros_NG == fmt.symmetric_zero).all()):
        raise CheckpointError(
            f"the config says zero_point false but a zero is not {fmt.symmetric_zero}; "
            '"zero_point" should be true'
        )
    codes_NK = np.ascontiguousarray(_unpack(qweight, n).T)
    return QuantizedTensor(codes_NK, to_f16(scales.T, "scales"), zeros_NG, fmt)


def packed_shape(n: int, k: int) -> tuple[int, int]:
    """Shape of the qweight of an (N, K) weight."""
    return k, num_words(n, BITS)


def _check_words(name: str, words: AnyArray, shape: tuple[int, int]) -> None:
    rows, n = shape
    want = (rows, num_words(n, BITS))
    if words.dtype != np.int32 or words.shape != want:
        raise CheckpointError(
            f"{name} is {words.dtype}{list(words.shape)}; int32{list(want)} is needed for {n} "
            "output columns of 4 bits"
        )


def _unpack(words_RW: npt.NDArray[np.int32], n: int) -> U8Array:
    """(R, N/8) words -> (R, N) values in column order."""
    nibbles = unpack_bits(words_RW, BITS, n).reshape(words_RW.shape[0], -1, PER_WORD)
    return nibbles[:, :, list(COLUMN_NIBBLE)].reshape(words_RW.shape[0], n)
