from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from factory import tiny_config

from bcquant.models.alibi import alibi_bias, alibi_slopes
from bcquant.models.architecture import find_architecture
from bcquant.models.norm import rms_norm
from bcquant.models.rope import apply_rope, rope_table
from bcquant.models.rope_scaling import base_frequencies, scaled_frequencies
from bcquant.spec.model_config import RopeScaling


def test_rms_norm_is_the_formula() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 8)
    x64 = x.double()
    want = x64 / (x64.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    # float32 keeps 24 bits; a handful of operations lose a few of them.
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), want, atol=1e-6, rtol=1e-6)


def test_rms_norm_keeps_its_statistics_in_float32() -> None:
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)  # its square overflows float16
    out = rms_norm(x, torch.ones(4096, dtype=torch.float16), 1e-6)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.ones_like(x))


def test_rope_turns_a_pair_by_the_positions_angle() -> None:
    cfg_dict = tiny_config("llama")
    cfg = find_architecture(cfg_dict).parse(cfg_dict)
    cos, sin = rope_table(cfg, torch.tensor([[0, 3]]))
    assert cos.shape == sin.shape == (1, 2, 16) and cos.dtype == torch.float32
    x = torch.zeros(1, 1, 2, 16)
    x[..., 2] = 1.0  # the first half's element 2 pairs with 2 + 8
    turned = apply_rope(x, cos, sin)
    angle = 3 * 10000.0 ** (-2 * 2 / 16)
    assert turned[0, 0, 0, 2] == 1.0
    assert turned[0, 0, 1, 2].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert turned[0, 0, 1, 10].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_rope_keeps_the_type_of_its_input() -> None:
    x = torch.ones(1, 2, 3, 16, dtype=torch.bfloat16)
    table = torch.ones(1, 3, 16)
    assert apply_rope(x, table, table).dtype == torch.bfloat16


def test_llama3_scaling_keeps_fast_and_divides_slow_frequencies() -> None:
    frequencies = base_frequencies(500000.0, 128)
    scaled = scaled_frequencies(frequencies, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    wavelengths = 2 * np.pi / frequencies
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(scaled[fast], frequencies[fast])
    np.testing.assert_allclose(scaled[slow], frequencies[slow] / 8, rtol=1e-15)
    between = ~(fast | slow)
    assert between.any()
    assert (scaled[between] < frequencies[between]).all()
    assert (scaled[between] > frequencies[between] / 8).all()


def test_linear_scaling_divides_every_frequency() -> None:
    frequencies = base_frequencies(10000.0, 16)
    np.testing.assert_array_equal(
        scaled_frequencies(frequencies, RopeScaling("linear", 4.0)), frequencies / 4
    )


def test_slopes_of_a_power_of_two_are_one_geometric_row() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1) == [2.0**-8]


def test_slopes_of_40_heads_are_32_and_every_second_of_64() -> None:
    slopes = alibi_slopes(40)
    assert slopes[:32] == [2.0 ** (-i / 4) for i in range(1, 33)]
    assert slopes[32:] == [2.0 ** (-i / 8) for i in (1, 3, 5, 7, 9, 11, 13, 15)]


def test_bias_is_slope_times_distance() -> None:
    bias = alibi_bias(2, torch.tensor([[4, 5]]), torch.tensor([[0, 4, 5]]))
    assert bias.shape == (1, 2, 2, 3)
    torch.testing.assert_close(bias[0, 0, 1], torch.tensor([-5.0, -1.0, 0.0]) * 2**-4)
    torch.testing.assert_close(bias[0, 1, 0, :2], torch.tensor([-4.0, 0.0]) * 2**-8)
