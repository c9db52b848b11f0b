"""Packed weights under torch against the dequantized weight in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factory import make_tiny

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels.packed_linear import PackedLinear, linear_hook, pack_tensor
from bcquant.models.decoder import Decoder
from bcquant.models.source import open_model
from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

FORMATS = [
    QuantFormat(bits, group_size, symmetric)
    for bits in (2, 3, 4, 8)
    for group_size in (32, 128, -1)
    for symmetric in (True, False)
]


def quantized(fmt: QuantFormat, n: int = 50, k: int = 200) -> QuantizedTensor:
    weight = np.random.default_rng(0).normal(0, 0.05, (n, k)).astype(np.float32)
    return quantize_nearest(weight, fmt)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def assert_rows_close(found: torch.Tensor, wanted: torch.Tensor, relative: float) -> None:
    """Every output vector within `relative` of its own norm."""
    error = (found.double() - wanted.double()).norm(dim=-1)
    assert (error <= relative * wanted.double().norm(dim=-1)).all(), error.max()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_exact_equals_torch_on_the_dequantized_weight(fmt: QuantFormat) -> None:
    q, x, bias = quantized(fmt), random(5, 200), random(50)
    wanted = F.linear(x, torch.from_numpy(dequantize(q)), bias)
    # Two float32 sums of K = 200 in different orders: sqrt(K) x 2^-24 = 8e-7 as a rule.
    assert_rows_close(PackedLinear(q, bias, num_threads=1)(x), wanted, 1e-5)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_int8_is_near_torch_on_the_dequantized_weight(fmt: QuantFormat) -> None:
    q, x = quantized(fmt), random(5, 200)
    wanted = F.linear(x, torch.from_numpy(dequantize(q)))
    # Uniform rounding of x: a step of absmax / 127 = 2.6 sigma / 127 has an error of 0.6 % of
    # sigma (step / sqrt(12)); zeros that are not centred leave it as it is. Twice that.
    assert_rows_close(PackedLinear(q, None, "int8", num_threads=1)(x), wanted, 0.012)


def test_w8a8_runs_with_a_scale_a_token() -> None:
    module = PackedLinear(quantized(QuantFormat(8, -1, True, "int8_token")), num_threads=1)
    assert module.precision == "int8_token"
    # One step of absmax / 127 for 200 columns, 2.8 sigma: 0.64 %.
    wanted = F.linear(random(4, 200), torch.from_numpy(dequantize(quantized(QuantFormat(8, -1)))))
    assert_rows_close(module(random(4, 200)), wanted, 0.012)


@pytest.mark.parametrize("shape", [(200,), (0, 200), (1, 200), (2, 3, 200), (2, 1, 4, 200)])
def test_leading_dimensions_stay(shape: tuple[int, ...]) -> None:
    q, x = quantized(QuantFormat(4, 32)), random(*shape)
    found = PackedLinear(q, random(50), num_threads=1)(x)
    assert found.shape == (*shape[:-1], 50)
    wanted = F.linear(x, torch.from_numpy(dequantize(q)), random(50))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)  # as above


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_converted_and_come_back(dtype: torch.dtype) -> None:
    module = PackedLinear(quantized(QuantFormat(4, 32)), num_threads=1)
    x = random(3, 200).to(dtype)
    assert torch.equal(module(x), module(x.float()).to(dtype))


def test_strides_of_x_do_not_matter() -> None:
    module, x = PackedLinear(quantized(QuantFormat(4, 32)), num_threads=1), random(200, 6)
    assert torch.equal(module(x.t()), module(x.t().contiguous()))


def test_the_blob_is_the_state_of_the_module() -> None:
    fmt = QuantFormat(4, 32)
    module, other = PackedLinear(quantized(fmt)), PackedLinear(quantized(fmt))
    other.packed.zero_()
    with pytest.raises(KernelError, match="open a packed weight"):
        other(random(1, 200))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(random(1, 200)), module(random(1, 200)))


def test_what_it_refuses() -> None:
    module = PackedLinear(quantized(QuantFormat(4, 32)))
    with pytest.raises(ShapeError, match=r"\[2, 199\] on cpu"):
        module(random(2, 199))
    with pytest.raises(ShapeError, match="on meta"):
        module(torch.empty(2, 200, device="meta"))
    with pytest.raises(KernelError, match="gradient"):
        module(random(2, 200).requires_grad_())
    with pytest.raises(KernelError, match="group_size 8"):
        pack_tensor(quantized(QuantFormat(4, 8)))


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_decoder_runs_on_packed_blocks(family: str, tmp_path: Path) -> None:
    with open_model(make_tiny(family, tmp_path)) as source:
        packed, plain = Decoder.load(source), Decoder.load(source)
    for block, float_block in zip(packed.blocks, plain.blocks, strict=True):
        for name, weight in list(block.items()):
            if name.endswith("_proj.weight"):
                q = quantize_nearest(weight.numpy(), QuantFormat(8, -1))
                block[name] = pack_tensor(q)
                float_block[name] = torch.from_numpy(dequantize(q))
    packed.linear = linear_hook("exact", 1)
    ids = torch.arange(12).reshape(2, 6) % 90
    # The same float32 sums in another order; layers pass on and mix what they differ by.
    assert_rows_close(packed(ids), plain(ids), 5e-5)


def test_the_hook_multiplies_float_weights_and_misses_no_weight() -> None:
    hook, x, weight = linear_hook(num_threads=1), random(3, 8), random(5, 8)
    assert torch.equal(hook(x, weight, None, "q"), F.linear(x, weight))
    with pytest.raises(KeyError, match=r"q\.weight"):
        hook(x, None, None, "q")
