"""The integers of every layout of an ONNX graph are the checkpoint's, and ONNX Runtime agrees."""

from __future__ import annotations

import numpy as np
import pytest

from bcquant.errors import ExportError, ShapeError
from bcquant.quant.grid import quantize_nearest
from bcquant.quant.onnx_blocks import (
    NBits,
    block_size_of,
    container_bits,
    from_blockwise_dq,
    from_matmul_nbits,
    requirements,
    to_blockwise_dq,
    to_matmul_integer,
    to_matmul_nbits,
)
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import BITS, QuantFormat

SHAPES = [(5, 256, 64), (3, 200, 64), (1, 96, 96), (7, 144, 48), (4, 40, -1), (2, 384, -1)]


def random_tensor(fmt: QuantFormat, n: int, k: int, seed: int = 0) -> QuantizedTensor:
    """Every code, zero and sign of scale occurs, also those that no solver of ours makes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, fmt.max_code + 1, (n, k)).astype(np.uint8)
    scales = rng.standard_normal((n, fmt.num_groups(k))).astype(np.float16)
    zeros = rng.integers(0, fmt.max_code + 1, scales.shape).astype(np.uint8)
    if fmt.symmetric:
        zeros[:] = fmt.symmetric_zero
    return QuantizedTensor(codes, scales, zeros, fmt)


def group_of_column(fmt: QuantFormat, k: int) -> np.ndarray:
    return np.arange(k) // fmt.group_width(k)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "k", "group_size"), SHAPES)
def test_matmul_nbits_carries_codes_scales_and_zeros(
    n: int, k: int, group_size: int, bits: int, symmetric: bool
) -> None:
    q = random_tensor(QuantFormat(bits, group_size, symmetric), n, k)
    stored = to_matmul_nbits(q)
    read = from_matmul_nbits(stored, k)
    groups = group_of_column(q.format, k)
    blocks = np.arange(k) // stored.block_size
    assert np.array_equal(read.codes_NK, q.codes_NK)
    assert np.array_equal(read.scales_NG[:, blocks], q.scales_NG[:, groups])
    assert np.array_equal(read.zeros_NG[:, blocks], q.zeros_NG[:, groups])
    assert (stored.zero_points is None) == (symmetric and bits != 3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "k", "group_size"), SHAPES)
def test_blockwise_dq_carries_codes_scales_and_zeros(
    n: int, k: int, group_size: int, bits: int, symmetric: bool
) -> None:
    q = random_tensor(QuantFormat(bits, group_size, symmetric), n, k)
    stored = to_blockwise_dq(q)
    read = from_blockwise_dq(stored, k, n)
    groups = group_of_column(q.format, k)
    blocks = np.arange(k) // (stored.block_size or k)
    assert np.array_equal(read.codes_NK, q.codes_NK)
    assert np.array_equal(read.scales_NG[:, blocks], q.scales_NG[:, groups])
    assert np.array_equal(read.zeros_NG[:, blocks], q.zeros_NG[:, groups])


def test_nibbles_are_low_first_along_columns() -> None:
    fmt = QuantFormat(4, 16)
    codes = np.zeros((1, 16), np.uint8)
    codes[0, :4] = (1, 2, 3, 15)
    q = QuantizedTensor(codes, np.ones((1, 1), np.float16), np.full((1, 1), 8, np.uint8), fmt)
    assert to_matmul_nbits(q).b[0, 0, :3].tolist() == [0x21, 0xF3, 0x00]


def test_blockwise_nibbles_run_over_the_flattened_matrix() -> None:
    fmt = QuantFormat(4, -1)
    codes = np.array([[1, 2], [3, 4], [5, 6]] * 1, np.uint8)  # N = 3, K = 2: rows end mid-byte
    q = QuantizedTensor(codes, np.ones((3, 1), np.float16), np.full((3, 1), 8, np.uint8), fmt)
    assert to_blockwise_dq(q).codes.tolist() == [0x31, 0x25, 0x64]  # 1 3 5 2 4 6, low first


@pytest.mark.parametrize(
    ("group_size", "k", "size"),
    [
        (128, 4096, 128), (64, 576, 64), (48, 144, 16), (96, 192, 32), (1024, 4096, 256),
        (-1, 4096, 128), (-1, 576, 64), (-1, 200, 128), (-1, 40, 64), (-1, 8, 16), (64, 64, 64),
        (24, 24, 32), (128, 200, 128),
    ],
)  # fmt: skip
def test_block_size(group_size: int, k: int, size: int) -> None:
    assert block_size_of(QuantFormat(4, group_size), k) == size


def test_a_block_never_spans_two_groups() -> None:
    for group_size in range(16, 520, 8):
        fmt = QuantFormat(4, group_size)
        for k in (group_size + 8, 2 * group_size, 1000):
            if requirements(fmt, k):
                assert group_size % 16 and fmt.num_groups(k) > 1
            elif fmt.num_groups(k) > 1:
                assert group_size % block_size_of(fmt, k) == 0


def test_groups_of_24_are_refused_with_advice() -> None:
    with pytest.raises(ExportError, match=r"groups of 24 columns .* multiple of 16.*32, 64"):
        block_size_of(QuantFormat(4, 24), 96)


def test_three_bits_take_containers_of_four_with_their_own_zero() -> None:
    assert [container_bits(QuantFormat(bits)) for bits in BITS] == [2, 4, 4, 8]
    stored = to_matmul_nbits(random_tensor(QuantFormat(3, 16), 2, 48))
    assert stored.zero_points is not None  # 3 blocks: 4, 4, 4 and a spare nibble
    assert stored.zero_points.tolist() == [[0x44, 0x04]] * 2


@pytest.mark.parametrize("field", ["b", "scales", "zero_points"])
def test_contradictory_arrays_are_refused(field: str) -> None:
    stored = to_matmul_nbits(random_tensor(QuantFormat(4, 32, False), 4, 96))
    short = getattr(stored, field)[:-1]
    with pytest.raises(ShapeError, match="is needed"):
        from_matmul_nbits(stored._replace(**{field: short}), 96)


def test_unknown_containers_are_refused() -> None:
    stored = to_matmul_nbits(random_tensor(QuantFormat(4, 32), 4, 96))
    with pytest.raises(ShapeError, match="2, 4 or 8"):
        from_matmul_nbits(stored._replace(bits=5), 96)
    dq = to_blockwise_dq(random_tensor(QuantFormat(4, 32), 4, 96))
    for wrong in (dq._replace(bits=3), dq._replace(codes=dq.codes[:-1])):
        with pytest.raises(ShapeError, match="needed"):
            from_blockwise_dq(wrong, 96, 4)
    with pytest.raises(ShapeError, match="scales"):
        from_blockwise_dq(dq._replace(scales=dq.scales[:-1]), 96, 4)


def test_matmul_integer_transposes_whole_row_int8() -> None:
    q = random_tensor(QuantFormat(8, -1, activation="int8_token"), 3, 40)
    codes_KN, scales_N = to_matmul_integer(q)
    assert np.array_equal(codes_KN.T, q.codes_NK) and np.array_equal(scales_N, q.scales_NG[:, 0])
    with pytest.raises(ExportError, match="one scale a row; got 4 bits"):
        to_matmul_integer(random_tensor(QuantFormat(4, -1), 3, 40))


@pytest.mark.judge
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_onnxruntime_multiplies_with_the_same_weights(bits: int, symmetric: bool) -> None:
    """ONNX Runtime's kernel on rows of the identity gives the dequantized weight, bit by bit."""
    for n, k, group_size in [(5, 256, 64), (3, 200, 64), (7, 144, 48), (4, 40, -1)]:
        q = random_tensor(QuantFormat(bits, group_size, symmetric), n, k)
        weight = run_matmul_nbits(to_matmul_nbits(q), np.eye(k, dtype=np.float32))
        groups = group_of_column(q.format, k)
        steps = q.codes_NK.astype(np.float32) - q.zeros_NG[:, groups]
        # One product of an 11-bit scale and a 9-bit difference, plus zeros. The kernel multiplies
        # code and zero with the scale before it subtracts: 2^-24 of at most 255 scales, twice.
        error = np.abs(weight.T - q.scales_NG.astype(np.float32)[:, groups] * steps)
        assert float(error.max()) <= 2 * 255 * 2**-24 * float(np.abs(q.scales_NG).max())


def run_matmul_nbits(stored: NBits, x_MK: np.ndarray) -> np.ndarray:
    onnx = pytest.importorskip("onnx", reason="onnx, which builds the judge's graph, is missing")
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime, the judge, is not installed")
    helper, arrays = onnx.helper, {"b": stored.b, "s": stored.scales.astype(np.float32)}
    if stored.zero_points is not None:
        arrays["z"] = stored.zero_points
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=x_MK.shape[1],
        N=len(stored.b), bits=stored.bits, block_size=stored.block_size, accuracy_level=0,
    )  # fmt: skip
    ends = [helper.make_tensor_value_info(name, 1, [None, None]) for name in "xy"]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initializers)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x_MK})[0])


def test_a_quantized_weight_survives_both_layouts() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 96), dtype=np.float32)
    q = quantize_nearest(weight, QuantFormat(4, 32))
    assert np.array_equal(from_matmul_nbits(to_matmul_nbits(q), 96).codes_NK, q.codes_NK)
    assert np.array_equal(from_blockwise_dq(to_blockwise_dq(q), 96, 6).codes_NK, q.codes_NK)
