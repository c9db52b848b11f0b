"""Independent judge: gptqmodel's torch kernel dequantizes what `to_gptq` writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bcquant.quant.grid import dequantize, quantize_nearest
from bcquant.quant.limits import reader_limits, requirements
from bcquant.quant.quant_configs import gptq_config
from bcquant.quant.repack import to_gptq
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Third-party imports: torch.jit and SWIG types announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def quantized(fmt: QuantFormat, n: int, k: int) -> QuantizedTensor:
    """A weight with negative scales in every other row, and a shift that moves the zeros."""
    weight = np.random.default_rng(n * k + fmt.bits).standard_normal((n, k), dtype=np.float32)
    q = quantize_nearest(weight + np.float32(0.4), fmt)
    signs = np.where(np.arange(n) % 2, -1, 1).astype(np.float16)[:, None]
    return QuantizedTensor(q.codes_NK, q.scales_NG * signs, q.zeros_NG, fmt)


def judge_dequantize(q: QuantizedTensor, version: str, bias: Any = None) -> tuple[Any, Any]:
    """(N, K) float16 as gptqmodel sees it, and the loaded module."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    fmt = q.format
    module = TorchLinear(
        bits=fmt.bits, group_size=fmt.group_size, sym=fmt.symmetric, desc_act=False,
        in_features=q.in_features, out_features=q.out_features, bias=bias is not None,
    )  # fmt: skip
    tensors = {k: torch.from_numpy(v) for k, v in to_gptq(q, version, bias).items()}
    module.load_state_dict(tensors, strict=True)  # refuses any other shape
    if version == "v1":
        convert_gptq_v1_to_v2_format_module(module, fmt.bits, torch.int32)
    module.post_init()
    return module.dequantize_weight().T.numpy(), module


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 16, 32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_floats_are_bit_equal(bits: int, group_size: int, symmetric: bool, version: str) -> None:
    q = quantized(QuantFormat(bits, group_size, symmetric), 64, 256)
    got, _ = judge_dequantize(q, version)
    # The kernel multiplies in float16: one rounding of the exact product, so equal bits.
    assert np.array_equal(got, dequantize(q).astype(np.float16))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "n", "k"), [(2, 40, 200), (4, 40, 200), (8, 40, 200), (3, 32, 160), (4, 7, 83)]
)
def test_ragged_group_and_partial_words_are_bit_equal(
    bits: int, n: int, k: int, symmetric: bool, version: str
) -> None:
    """K = 200 in groups of 64 leaves a group of 8; N = 7, K = 83 leaves words partly filled."""
    fmt = QuantFormat(bits, 64, symmetric)
    assert k % 64 and not requirements(fmt, n, k, "gptq")
    q = quantized(fmt, n, k)
    got, _ = judge_dequantize(q, version)
    assert np.array_equal(got, dequantize(q).astype(np.float16))


@pytest.mark.parametrize(("bits", "k"), [(2, 200), (3, 160), (4, 200), (8, 200)])
def test_forward_of_a_ragged_group_with_bias(bits: int, k: int) -> None:
    torch = pytest.importorskip("torch")
    q = quantized(QuantFormat(bits, 64), 32, k)
    bias = np.linspace(-1, 1, 32, dtype=np.float32)
    _, module = judge_dequantize(q, "v1", bias)
    x = np.random.default_rng(0).standard_normal((3, k)).astype(np.float16)
    got = module.eval()(torch.from_numpy(x)).float().numpy()
    want = x.astype(np.float32) @ dequantize(q).T + bias
    # The kernel holds weights and result in float16: relative 2^-11 each on sums of K terms.
    bound = np.abs(x.astype(np.float32)) @ np.abs(dequantize(q)).T * 2**-9 + 2**-9
    assert (np.abs(got - want) <= bound).all()


@pytest.mark.parametrize(("n", "k"), [(40, 64), (32, 72)])
def test_refused_3_bit_shapes_fail_in_the_judge_too(n: int, k: int) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    assert requirements(QuantFormat(3, -1), n, k, "gptq")
    module = TorchLinear(
        bits=3, group_size=-1, sym=True, desc_act=False, in_features=k, out_features=n
    )
    module.post_init()
    with pytest.raises((RuntimeError, IndexError)):
        torch.as_tensor(module.dequantize_weight())


def automatic_cpu_kernel(bits: int, group_size: int) -> Any:
    """The class that transformers gets when it names no backend."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    return hf_select_quant_linear_v2(
        bits=bits, group_size=group_size, desc_act=False, sym=True, format="gptq", meta=None,
        quant_method=METHOD.GPTQ, device_map={"": torch.device("cpu")}, backend="auto", pack=False,
    )  # fmt: skip


def run_automatic_kernel(fmt: QuantFormat, n: int, k: int) -> tuple[Any, Any, Any]:
    """(got, want, sum of magnitudes) of 3 rows through the automatic kernel."""
    import torch
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    q = quantized(fmt, n, k)
    module = automatic_cpu_kernel(fmt.bits, fmt.group_size)(
        bits=fmt.bits, group_size=fmt.group_size, sym=fmt.symmetric, desc_act=False, bias=False,
        in_features=k, out_features=n, pack_dtype=torch.int32, register_buffers=True,
    )  # fmt: skip
    module.load_state_dict({a: torch.from_numpy(v) for a, v in to_gptq(q, "v1").items()})
    convert_gptq_v1_to_v2_format_module(module, fmt.bits, torch.int32)
    module.post_init()
    x = np.random.default_rng(1).standard_normal((3, k)).astype(np.float16)
    got = module.eval()(torch.from_numpy(x)).float().numpy()
    x32, weight = x.astype(np.float32), dequantize(q)
    return got, x32 @ weight.T, np.abs(x32) @ np.abs(weight).T


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_automatic_cpu_kernel_agrees(bits: int) -> None:
    got, want, size = run_automatic_kernel(QuantFormat(bits, 64), 64, 256)
    # At 4 bits it holds scales, inputs and outputs in bfloat16: 2^-9 each, on every term.
    assert (np.abs(got - want) <= size * 2**-7).all()


@pytest.mark.parametrize(("n", "k"), [(64, 160), (40, 256)])
def test_automatic_cpu_kernel_fails_where_reader_limits_say(n: int, k: int) -> None:
    automatic = automatic_cpu_kernel(4, 64)
    assert automatic.__name__ == "TorchAtenLinear"
    assert "automatic CPU kernel" in reader_limits(QuantFormat(4, 64), n, k, "gptq")[0]
    with pytest.raises(RuntimeError, match="divi"):
        run_automatic_kernel(QuantFormat(4, 64), n, k)


def test_backend_name_in_the_advice_is_the_torch_kernel() -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.backend import BACKEND

    assert [BACKEND("gptq_torch")] == TorchLinear.SUPPORTS_BACKENDS


@pytest.mark.parametrize("group_size", [8, 24, 48, 96])
def test_refused_group_sizes_are_refused_by_the_judge(group_size: int) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    assert requirements(QuantFormat(4, group_size), 64, 192, "gptq_v2")
    with pytest.raises(NotImplementedError, match="group_size"):
        TorchLinear(
            bits=4, group_size=group_size, sym=True, desc_act=False, in_features=192,
            out_features=64,
        )  # fmt: skip


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_readers_understand_the_config(version: str) -> None:
    pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    from gptqmodel.quantization import QuantizeConfig
    from transformers.utils.quantization_config import GPTQConfig

    fmt = QuantFormat(4, 64, symmetric=False)
    written = gptq_config(fmt, version, {"seed": 1}, dynamic={"-:.*down": {}})
    name = {"v1": "gptq", "v2": "gptq_v2"}[version]
    # offload_to_disk would leave a temporary folder behind.
    read = QuantizeConfig.from_quant_config({**written, "offload_to_disk": False})
    assert (read.bits, read.group_size, read.sym, read.desc_act) == (4, 64, False, False)
    assert str(read.format.value) == name and not read.lm_head
    hf = GPTQConfig.from_dict(dict(written))
    assert (hf.bits, hf.group_size, hf.sym, hf.format) == (4, 64, False, name)
