"""Independent judge: the compressed_tensors package decompresses what `to_compressed` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.quant_configs import compressed_config
from bcquant.quant.repack import requirements, to_compressed, to_int8
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHAPES = [(32, 128), (37, 200), (9, 72)]


def quantized(fmt: QuantFormat, n: int, k: int) -> QuantizedTensor:
    """A weight with negative scales in every other row, and a shift that moves the zeros."""
    weight = np.random.default_rng(n * k + fmt.bits).standard_normal((n, k), dtype=np.float32)
    q = quantize_nearest(weight + np.float32(0.4), fmt)
    signs = np.where(np.arange(n) % 2, -1, 1).astype(np.float16)[:, None]
    return QuantizedTensor(q.codes_NK, q.scales_NG * signs, q.zeros_NG, fmt)


def judge(fmt: QuantFormat) -> tuple[Any, Any]:
    """The judge's compressor class and scheme, both chosen by our config dict alone."""
    pytest.importorskip("compressed_tensors", reason="compressed_tensors, the judge, is missing")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    scheme = QuantizationConfig.model_validate(compressed_config(fmt)).config_groups["group_0"]
    layout = getattr(scheme.format, "value", scheme.format)
    return BaseCompressor.get_value_from_registry(layout), scheme


def as_torch(tensors: dict[str, Any]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(array) for name, array in tensors.items()}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 8, 32, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pack_quantized_floats_are_bit_equal(bits: int, group_size: int, symmetric: bool) -> None:
    fmt = QuantFormat(bits, group_size, symmetric)
    compressor, scheme = judge(fmt)
    shapes = [s for s in SHAPES if not requirements(fmt, *s, "compressed-tensors")]
    assert shapes
    for n, k in shapes:
        q = quantized(fmt, n, k)
        tensors = as_torch(to_compressed(q))
        assert sorted(tensors) == sorted(compressor.compression_param_names(scheme))
        got = compressor.decompress(tensors, scheme)["weight"].numpy()
        # The judge multiplies in float16: one rounding of the exact product, so equal bits.
        assert np.array_equal(got, dequantize(q).astype(np.float16))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_judge_packs_the_same_bytes(bits: int, symmetric: bool) -> None:
    """Decompress, compress again by the judge: every stored tensor comes back."""
    torch = pytest.importorskip("torch")
    fmt = QuantFormat(bits, 32, symmetric)
    compressor, scheme = judge(fmt)
    tensors = as_torch(to_compressed(quantized(fmt, 37, 160)))
    again = compressor.compress(compressor.decompress(tensors, scheme), scheme)
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_int_quantized_floats_are_bit_equal(n: int, k: int) -> None:
    fmt = QuantFormat(8, -1, True, "int8_token")
    compressor, scheme = judge(fmt)
    assert compressor.__name__ == "IntQuantizationCompressor"
    q = quantized(fmt, n, k)
    tensors = as_torch(to_int8(q))
    assert sorted(tensors) == sorted(compressor.compression_param_names(scheme))
    got = compressor.decompress(tensors, scheme)["weight"].numpy()
    assert np.array_equal(got, dequantize(q).astype(np.float16))


def test_ragged_group_is_refused_by_the_judge_too() -> None:
    fmt = QuantFormat(4, 64)
    reasons = requirements(fmt, 32, 200, "compressed-tensors")
    assert len(reasons) == 1 and "multiple of group_size 64" in reasons[0]
    compressor, scheme = judge(fmt)
    torch = pytest.importorskip("torch")
    tensors = {
        "weight_packed": torch.zeros(32, 25, dtype=torch.int32),
        "weight_scale": torch.ones(32, 4, dtype=torch.float16),
        "weight_shape": torch.tensor([32, 200]),
    }
    with pytest.raises(ValueError, match="group_size 64"):
        compressor.decompress(tensors, scheme)


def test_few_rows_of_4_bit_zero_points_fail_in_the_judge_too() -> None:
    fmt = QuantFormat(4, 8, symmetric=False)
    assert "below 9" in requirements(fmt, 8, 72, "compressed-tensors")[0]
    compressor, scheme = judge(fmt)
    torch = pytest.importorskip("torch")
    tensors = {
        "weight_packed": torch.zeros(8, 9, dtype=torch.int32),
        "weight_scale": torch.ones(8, 9, dtype=torch.float16),
        "weight_shape": torch.tensor([8, 72]),
        "weight_zero_point": torch.zeros(1, 9, dtype=torch.int32),
    }
    with pytest.raises(RuntimeError, match="stride"):
        compressor.decompress(tensors, scheme)


@pytest.mark.parametrize(
    "fmt", [QuantFormat(4, 64), QuantFormat(8, -1), QuantFormat(8, -1, True, "int8_token")]
)
def test_transformers_reads_the_config(fmt: QuantFormat) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed_tensors, the judge, is missing")
    from transformers.utils.quantization_config import CompressedTensorsConfig

    read = CompressedTensorsConfig.from_dict(compressed_config(fmt)).quantization_config
    weights = read.config_groups["group_0"].weights
    assert (weights.num_bits, weights.symmetric) == (fmt.bits, fmt.symmetric)
    assert read.ignore == ["lm_head"] and read.quantization_status.value == "compressed"
