"""bcquant.quant.awq: the `gemm` layout of AWQ against a loop over single bits, and bad tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_awq import ORDER, awq_words

from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.awq import from_awq, packed_shape
from bcquant.spec.quant_format import QuantFormat


def naive_words(values_RN: Any) -> np.ndarray:
    """Words of AWQ, one value at a time in Python's own integers."""
    rows, n = values_RN.shape
    words = np.zeros((rows, n // 8), np.int32)
    for row in range(rows):
        for word in range(n // 8):
            bits = 0
            for nibble, column in enumerate(ORDER):
                bits |= int(values_RN[row, word * 8 + column]) << (4 * nibble)
            words[row, word] = np.uint32(bits).view(np.int32)
    return words


def stored(n: int, k: int, group_size: int, seed: int = 0, zero: int | None = None) -> Any:
    """(tensors, codes, scales, zeros) of a random module."""
    rng = np.random.default_rng(seed)
    groups = 1 if group_size == -1 else k // group_size
    codes_KN = rng.integers(0, 16, (k, n), dtype=np.uint8)
    zeros_GN = rng.integers(0, 16, (groups, n), dtype=np.uint8)
    if zero is not None:
        zeros_GN[:] = zero
    scales_GN = rng.standard_normal((groups, n)).astype(np.float16)
    tensors = {
        "qweight": naive_words(codes_KN), "qzeros": naive_words(zeros_GN), "scales": scales_GN
    }  # fmt: skip
    return tensors, codes_KN.T, scales_GN.T, zeros_GN.T


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 5).map(lambda i: 8 * i),
    groups=st.integers(1, 3),
    group_size=st.sampled_from([-1, 8, 32]),
    seed=st.integers(0, 99),
)
def test_words_are_read_as_a_loop_wrote_them(
    n: int, groups: int, group_size: int, seed: int
) -> None:
    k = 24 if group_size == -1 else group_size * groups
    tensors, codes, scales, zeros = stored(n, k, group_size, seed)
    q = from_awq(tensors, QuantFormat(4, group_size, symmetric=False))
    assert np.array_equal(q.codes_NK, codes)
    assert np.array_equal(q.zeros_NG, zeros)
    assert np.array_equal(q.scales_NG.view(np.uint16), np.ascontiguousarray(scales).view(np.uint16))
    assert tensors["qweight"].shape == packed_shape(n, k)


def test_words_of_the_test_writer_are_the_loops() -> None:
    values = np.random.default_rng(1).integers(0, 16, (5, 24), dtype=np.uint8)
    assert np.array_equal(awq_words(values), naive_words(values))


def test_a_word_that_counts_holds_columns_0_2_4_6_1_3_5_7() -> None:
    """0x76543210 has value i in nibble i, so column ORDER[i] is i."""
    tensors = {
        "qweight": np.full((8, 1), 0x76543210, np.int32),
        "qzeros": np.full((1, 1), 0x76543210, np.int32),
        "scales": np.ones((1, 8), np.float16),
    }
    q = from_awq(tensors, QuantFormat(4, 8, symmetric=False))
    assert q.codes_NK[:, 0].tolist() == q.zeros_NG[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_without_zero_points_every_zero_is_8() -> None:
    tensors, codes, _, _ = stored(16, 32, 16, zero=8)
    q = from_awq(tensors, QuantFormat(4, 16, symmetric=True))
    assert q.format.symmetric and np.array_equal(q.codes_NK, codes)
    tensors["qzeros"][1, 1] ^= 1 << 20
    with pytest.raises(CheckpointError, match='"zero_point" should be true'):
        from_awq(tensors, QuantFormat(4, 16, symmetric=True))


def test_bfloat16_scales_that_float16_holds_are_exact() -> None:
    tensors, _, _, _ = stored(8, 16, 16)
    values = np.float32([[0.5, -0.25, 3.0, 2**-14, 1.5, 0.0078125, 100.0, 7.0]])
    tensors["scales"] = (values.view(np.uint32) >> 16).astype(np.uint16)
    q = from_awq(tensors, QuantFormat(4, 16, symmetric=False))
    assert np.array_equal(q.scales_NG.T.astype(np.float32), values)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qweight", None, "qweight is missing"),
        ("qzeros", None, "qzeros is missing"),
        ("scales", None, "scales is missing"),
        ("qweight", np.zeros((64, 2), np.int64), r"qweight is int64.*int32\[64, 2\]"),
        ("qweight", np.zeros((64, 16), np.int32), r"int32\[64, 2\] is needed for 16 output"),
        ("qweight", np.zeros((60, 2), np.int32), "group_size right"),
        ("qweight", np.zeros((0, 2), np.int32), "group_size right"),
        ("qweight", np.zeros(64, np.int32), "group_size right"),
        ("qzeros", np.zeros((2, 2), np.int32), r"int32\[4, 2\] is needed"),
        ("qzeros", np.zeros((4, 2), np.float16), "qzeros is float16"),
        ("scales", np.ones((4, 12), np.float16), "multiple of 8"),
        ("scales", np.ones((0, 16), np.float16), "multiple of 8"),
        ("scales", np.ones((5, 16), np.float16), "5 groups"),
        ("scales", np.full((4, 16), np.inf, np.float16), "not finite"),
        ("scales", np.full((4, 16), 0.1, np.float32), "float32 and change"),
        ("scales", np.ones((4, 16), np.int32), "float type"),
    ],
)
def test_contradictory_tensors_are_named(name: str, value: Any, message: str) -> None:
    tensors, _, _, _ = stored(16, 64, 16)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(CheckpointError, match=message):
        from_awq(tensors, QuantFormat(4, 16, symmetric=False))


@pytest.mark.parametrize("fmt", [QuantFormat(8, 16), QuantFormat(3, 16)])
def test_other_widths_are_refused(fmt: QuantFormat) -> None:
    with pytest.raises(ConfigError, match="4-bit with float activations"):
        from_awq(stored(16, 64, 16)[0], fmt)
