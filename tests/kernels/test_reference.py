"""The numpy truth against the layout page by hand, and against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vectors.make_vectors import random_weight

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels import reference as ref
from bcquant.kernels import reference_ops as ops


@st.composite
def weights(draw: st.DrawFn) -> ref.Weight:
    n, k = draw(st.integers(1, 50)), draw(st.integers(1, 300))
    bits = draw(st.sampled_from((2, 3, 4, 8, 16)))
    group_size = draw(st.sampled_from([k, *range(32, k, 32)])) if bits != 16 else k
    return random_weight(n, k, bits, group_size, draw(st.booleans()), draw(st.integers(0, 9)))


@given(weights())
def test_unpack_is_the_inverse_of_pack(w: ref.Weight) -> None:
    found = ref.unpack_weight(ref.pack_weight(w))
    assert (found.bits, found.group_size) == (w.bits, w.group_size)
    np.testing.assert_array_equal(found.codes_NK, w.codes_NK)
    np.testing.assert_array_equal(found.scales_NG, w.scales_NG)
    if w.bits != 16:
        assert (found.zeros_NG is None) == (w.zeros_NG is None)
    if w.zeros_NG is not None:
        np.testing.assert_array_equal(found.zeros_NG, w.zeros_NG)


# One code at row 18 (panel 1, row 2), column 45 (unit 1, quad 3, byte 1) of (20, 70): 3 units a
# panel, so unit 4 of the blob. Byte of a quad: 2 * 4 + 1 = 9.
@pytest.mark.parametrize(
    ("bits", "code", "bytes_of_unit"),
    [
        (8, 0xAB, {3 * 64 + 9: 0xAB}),
        (4, 0xD, {1 * 64 + 9: 0xD0}),  # quad 3: the high half of run 1
        (2, 0x2, {0 * 64 + 9: 0x80}),  # quad 3: the top two bits of run 0
        (3, 0x6, {0 * 64 + 9: 0x80, 128 + 9: 1 << 3}),  # low bits 2, third bit in plane bit 3
    ],
)
def test_a_code_lies_where_the_page_says(
    bits: int, code: int, bytes_of_unit: dict[int, int]
) -> None:
    codes = np.zeros((20, 70), np.uint8)
    codes[18, 45] = code
    scales = np.zeros((20, 1), np.float16)
    blob = np.frombuffer(ref.pack_weight(ref.Weight(codes, scales, None, bits, 70)), np.uint8)
    found = {int(i): int(blob[i]) for i in np.flatnonzero(blob[64:]) + 64}
    assert found == {64 + 4 * 64 * bits + at: value for at, value in bytes_of_unit.items()}


def test_float16_values_lie_where_the_page_says() -> None:
    values = np.zeros((20, 70), np.float16)
    values[18, 45] = 1.5
    blob = np.frombuffer(ref.pack_weight(ref.half_weight(values)), "<f2")
    at = 32 + 4 * 512 + (45 - 32) * 16 + 2  # in halves: header, unit 4, column, row
    assert list(np.flatnonzero(blob[32:]) + 32) == [at]
    assert blob[at] == 1.5


def test_scales_and_zeros_lie_where_the_page_says() -> None:
    codes, scales = np.zeros((20, 70), np.uint8), np.zeros((20, 3), np.float16)
    zeros = np.zeros((20, 3), np.uint8)
    scales[18, 2], zeros[18, 2] = 2.0, 7
    blob = ref.pack_weight(ref.Weight(codes, scales, zeros, 4, 32))
    scales_at = 64 + 2 * 3 * 256
    zeros_at = scales_at + 2 * 3 * 32
    place = (1 * 3 + 2) * 16 + 2  # [panel][group][row]
    assert np.flatnonzero(np.frombuffer(blob, "<f2", 96, scales_at)).tolist() == [place]
    assert np.flatnonzero(np.frombuffer(blob, "u1", 96, zeros_at)).tolist() == [place]
    assert len(blob) == zeros_at + 128  # 96 bytes of zeros, then the alignment of a section


def test_the_header_is_the_one_of_the_page() -> None:
    w = random_weight(20, 70, 3, 32, False, 1)
    assert ref.pack_weight(w)[:64] == bytes.fromhex(
        "42435157 0100 03 01 14000000 46000000 20000000 03000000"
        "4000000000000000 c004000000000000 8005000000000000 0006000000000000 0000000000000000"
    )


def test_pack_refuses_a_code_that_needs_more_bits() -> None:
    w = random_weight(4, 32, 4, 32, True, 0)
    w.codes_NK[1, 1] = 16
    with pytest.raises(KernelError, match="above 15"):
        ref.pack_weight(w)


@pytest.mark.parametrize("group_size", [8, 33, 48])
def test_pack_refuses_a_group_that_is_no_whole_unit(group_size: int) -> None:
    w = random_weight(4, 96, 4, group_size, True, 0)
    with pytest.raises(KernelError, match=f"group_size {group_size}"):
        ref.pack_weight(w)


def test_quantized_activations_round_ties_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, -2.5, -127, 3]], np.float32)
    codes, scales = ref.quantize_activations(x, 32)
    assert codes.tolist() == [[127, 0, 2, -2, -127, 3]]
    assert scales.tolist() == [[1.0]]


def test_a_block_that_is_not_finite_has_scale_nan_and_no_codes() -> None:
    x = np.array([[1, np.inf, 2, 3], [1, np.nan, 2, 3], [1, 2, 3, 4]], np.float32)
    codes, scales = ref.quantize_activations(x, 2)
    assert codes[:2, :2].tolist() == [[0, 0], [0, 0]]
    assert np.isnan(scales[:2, 0]).all()
    assert np.isfinite(scales[:, 1]).all()
    assert np.isfinite(scales[2]).all()


def test_a_block_of_nothing_has_scale_zero() -> None:
    codes, scales = ref.quantize_activations(np.full((1, 4), 1e-36, np.float32), 4)
    assert codes.tolist() == [[0, 0, 0, 0]]
    assert scales.tolist() == [[0.0]]


def test_quantize_activations_refuses_another_dtype() -> None:
    with pytest.raises(ShapeError, match="float64"):
        ref.quantize_activations(np.zeros((1, 4)), 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group_size", "block"), [(32, 32), (64, 64), (96, 96), (128, 128), (160, 32), (256, 128)]
)
def test_an_activation_block_divides_the_group(group_size: int, block: int) -> None:
    assert ref.int8_block(random_weight(1, 640, 4, group_size, True, 0), False) == block


def test_int8_per_token_needs_one_scale_a_row() -> None:
    with pytest.raises(KernelError, match="one weight scale a row"):
        ref.int8_block(random_weight(1, 64, 4, 32, True, 0), True)


def test_int8_with_codes_that_fit_is_exact() -> None:
    w = random_weight(7, 100, 4, 32, False, 3)
    x = np.random.default_rng(1).integers(-127, 128, (3, 100)).astype(np.float32)
    x[:, ::32] = 127  # every block's scale is 1
    np.testing.assert_array_equal(ref.linear_int8(x, w), ref.linear_exact(x, w))


def test_operations_equal_torch() -> None:
    rng = np.random.default_rng(0)
    x, up = (rng.normal(0, 3, (5, 96)).astype(np.float32) for _ in range(2))
    gain = rng.normal(0, 1, 96).astype(np.float32)
    x64 = torch.from_numpy(x).double()
    wanted = torch.nn.functional.rms_norm(x64, (96,), torch.from_numpy(gain).double(), 1e-5)
    # One rounding to float32 of two float64 results: half a unit in the last place each.
    np.testing.assert_allclose(ops.rmsnorm(x, gain, 1e-5), wanted.numpy(), rtol=1e-7)
    wanted = torch.nn.functional.silu(x64) * torch.from_numpy(up)
    np.testing.assert_allclose(ops.silu_mul(x, up), wanted.numpy(), rtol=1e-7)
    wanted = torch.softmax(x64 / 0.7, dim=-1)
    np.testing.assert_allclose(ops.softmax(x, 0.7), wanted.numpy(), rtol=1e-7)


def test_attention_equals_torch() -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(0, 1, (4, 6 * 16)).astype(np.float32)
    keys, values = (rng.normal(0, 1, (9, 2 * 16)) for _ in range(2))
    seen = torch.arange(9)[None] <= torch.arange(5, 9)[:, None]
    seen &= torch.arange(9)[None] > torch.arange(5, 9)[:, None] - 6
    heads = [torch.from_numpy(a).double().reshape(len(a), -1, 16).transpose(0, 1)
             for a in (q, keys, values)]  # fmt: skip
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=seen, scale=0.25, enable_gqa=True
    )
    found = ops.attention(q, keys, values, 6, 2, 5, 0.25, window=6)
    np.testing.assert_allclose(found, wanted.transpose(0, 1).reshape(4, -1), rtol=1e-6, atol=1e-7)


def test_rope_turns_pairs_that_lie_half_a_head_apart() -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)  # one head, D = 4
    cos, sin = np.array([[0, 1]], np.float32), np.array([[1, 0]], np.float32)
    assert ops.rope(x, 1, cos, sin).tolist() == [[-3, 2, 1, 4]]


def test_softmax_of_nothing_is_zero() -> None:
    assert ops.softmax(np.full((1, 3), -np.inf, np.float32)).tolist() == [[0, 0, 0]]


def test_argmax_takes_the_first_and_no_nan() -> None:
    assert ops.argmax(np.array([np.nan, 1, 3, 3], np.float32)) == 2
