"""bcquant.quant.repack: canonical tensors <-> files, both ways, and what each format refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bcquant.errors import CheckpointError, ConfigError, ExportError, ShapeError
from bcquant.quant import repack
from bcquant.quant.limits import reader_limits
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat


def random_tensor(fmt: QuantFormat, n: int, k: int, seed: int = 0, low: int = 1) -> QuantizedTensor:
    """Random codes, scales of both signs, zeros from `low` up."""
    rng = np.random.default_rng(seed)
    shape = (n, fmt.num_groups(k))
    zeros = np.full(shape, fmt.symmetric_zero, np.uint8)
    if not fmt.symmetric:
        zeros = rng.integers(low, fmt.max_code + 1, shape, dtype=np.uint8)
    codes = rng.integers(0, fmt.max_code + 1, (n, k), dtype=np.uint8)
    return QuantizedTensor(codes, rng.standard_normal(shape).astype(np.float16), zeros, fmt)


def assert_same(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert a.format == b.format
    assert np.array_equal(a.codes_NK, b.codes_NK)
    assert np.array_equal(a.scales_NG.view(np.uint16), b.scales_NG.view(np.uint16))
    assert np.array_equal(a.zeros_NG, b.zeros_NG)


formats = st.builds(
    QuantFormat,
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.sampled_from((-1, 16, 32)),
    symmetric=st.booleans(),
)
sizes = st.integers(1, 70)


@settings(max_examples=80, deadline=None)
@given(fmt=formats, n=sizes, k=sizes, version=st.sampled_from(("v1", "v2")), seed=sizes)
def test_gptq_round_trip(fmt: QuantFormat, n: int, k: int, version: str, seed: int) -> None:
    if fmt.bits == 3:
        n, k = -(-n // 32) * 32, -(-k // 32) * 32
    q = random_tensor(fmt, n, k, seed, low=1 if version == "v1" else 0)
    tensors = repack.to_gptq(q, version)
    back = repack.from_gptq(tensors, fmt.bits, fmt.symmetric, version, fmt.group_size)
    assert_same(q, back)


@settings(max_examples=80, deadline=None)
@given(fmt=formats, n=sizes, groups=st.integers(1, 3), seed=sizes)
def test_compressed_round_trip(fmt: QuantFormat, n: int, groups: int, seed: int) -> None:
    k = 33 if fmt.group_size == -1 else fmt.group_size * groups
    assume(not repack.requirements(fmt, n, k, "compressed-tensors"))
    q = random_tensor(fmt, n, k, seed, low=0)
    tensors = repack.to_compressed(q)
    assert_same(q, repack.from_compressed(tensors, fmt.bits, fmt.symmetric, fmt.group_size))


def test_int8_round_trip_keeps_minus_128() -> None:
    fmt = QuantFormat(8, -1, True, "int8_token")
    q = random_tensor(fmt, 3, 300)
    q.codes_NK[0, :2] = 0, 255
    tensors = repack.to_int8(q)
    assert tensors["weight"][0, :2].tolist() == [-128, 127]
    assert_same(q, repack.from_int8(tensors))


def test_gptq_shapes_dtypes_and_g_idx() -> None:
    q = random_tensor(QuantFormat(4, 32, False), 16, 72)
    tensors = repack.to_gptq(q, "v1", np.ones(16, np.float32))
    described = {name: (str(a.dtype), a.shape) for name, a in tensors.items()}
    assert described == {
        "qweight": ("int32", (9, 16)),
        "qzeros": ("int32", (3, 2)),
        "scales": ("float16", (3, 16)),
        "g_idx": ("int32", (72,)),
        "bias": ("float16", (16,)),
    }
    assert tensors["g_idx"].tolist() == [i // 32 for i in range(72)]


@pytest.mark.parametrize(
    ("bits", "v1", "v2"),
    [
        (2, 0x55555555, 0xAAAAAAAA),
        (4, 0x77777777, 0x88888888),
        (8, 0x7F7F7F7F, 0x80808080),
    ],
)
def test_symmetric_zero_words_are_the_published_ones(bits: int, v1: int, v2: int) -> None:
    q = random_tensor(QuantFormat(bits, -1), 16, 16)
    for version, word in (("v1", v1), ("v2", v2)):
        words = repack.to_gptq(q, version)["qzeros"].view(np.uint32)
        assert (words == word).all()


def test_results_do_not_alias_their_input() -> None:
    q = random_tensor(QuantFormat(8, -1), 1, 32)
    for tensors in (repack.to_gptq(q, "v2"), repack.to_compressed(q), repack.to_int8(q)):
        for array in tensors.values():
            for source in (q.codes_NK, q.scales_NG, q.zeros_NG):
                assert not np.shares_memory(array, source)


def test_v1_refuses_zero_0_and_v2_holds_it() -> None:
    q = random_tensor(QuantFormat(4, -1, False), 8, 8)
    q.zeros_NG[3] = 0
    with pytest.raises(ExportError, match="zero of 0"):
        repack.to_gptq(q, "v1")
    assert_same(q, repack.from_gptq(repack.to_gptq(q, "v2"), 4, False, "v2"))


def test_v1_wraps_a_stored_15_to_zero_0() -> None:
    tensors = repack.to_gptq(random_tensor(QuantFormat(4, -1, False), 8, 8), "v1")
    tensors["qzeros"][:] = -1
    assert (repack.from_gptq(tensors, 4, False, "v1").zeros_NG == 0).all()


@pytest.mark.parametrize("group_size", [-1, 16])
def test_group_size_is_found_when_the_config_has_none(group_size: int) -> None:
    q = random_tensor(QuantFormat(4, group_size), 8, 72)
    tensors = repack.to_gptq(q, "v1")
    assert_same(q, repack.from_gptq(tensors, 4, True, "v1"))
    del tensors["g_idx"]
    if group_size == 16:  # 72 columns in 5 groups: only g_idx or the config can tell
        with pytest.raises(CheckpointError, match="group_size is needed"):
            repack.from_gptq(tensors, 4, True, "v1")
    assert_same(q, repack.from_gptq(tensors, 4, True, "v1", group_size))


def test_group_size_above_k_is_kept() -> None:
    q = random_tensor(QuantFormat(4, 128), 8, 64)
    assert_same(q, repack.from_gptq(repack.to_gptq(q, "v1"), 4, True, "v1", 128))


def test_act_order_is_refused_with_advice() -> None:
    tensors = repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v1")
    tensors["g_idx"] = tensors["g_idx"][::-1].copy()
    for group_size in (None, 16):
        with pytest.raises(CheckpointError, match="desc_act=false"):
            repack.from_gptq(tensors, 4, True, "v1", group_size)
    packed = repack.to_compressed(random_tensor(QuantFormat(4, 16), 8, 64))
    packed["weight_g_idx"] = tensors["g_idx"]
    with pytest.raises(CheckpointError, match="act-ordered"):
        repack.from_compressed(packed, 4, True, 16)


def test_sym_claim_is_checked_against_the_zeros() -> None:
    tensors = repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v1")
    with pytest.raises(CheckpointError, match="checkpoint_format"):
        repack.from_gptq(tensors, 4, True, "v2")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("qweight", None, "qweight is missing"),
        ("scales", None, "scales is missing"),
        ("qweight", np.zeros((8, 8), np.int64), "int64"),
        ("qweight", np.zeros((7, 8), np.int32), r"\[8, 8\] is needed"),
        ("qweight", np.zeros((0, 8), np.int32), r"\[8, 8\] is needed"),
        ("qzeros", np.zeros((3, 1), np.int32), r"\[4, 1\] is needed"),
        ("qzeros", np.zeros(4, np.int32), "matrix"),
        ("scales", np.ones((4, 9), np.float16), r"\[8, 9\] is needed"),
        ("scales", np.ones((3, 8), np.float16), "qzeros"),
        ("scales", np.full((4, 8), np.nan, np.float16), "not finite"),
        ("scales", np.full((4, 8), 1e6, np.float32), "65504"),
        ("scales", np.full((4, 8), 0.1, np.float32), "float32 and change"),
        ("scales", np.ones((4, 8), np.int32), "float type"),
        ("g_idx", np.zeros(64, np.float32), "g_idx is float32"),
        ("g_idx", np.zeros(0, np.int32), "0 columns"),
        ("g_idx", np.full(64, -1, np.int32), "act-ordered"),
    ],
)
def test_contradictory_gptq_tensors_are_named(name: str, value: Any, message: str) -> None:
    tensors = repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v1")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(CheckpointError, match=message):
        repack.from_gptq(tensors, 4, True, "v1", 16)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight_shape", None, "weight_shape is missing"),
        ("weight_shape", np.array([8.0, 64.0]), "weight_shape is float64"),
        ("weight_shape", np.array([8]), "weight_shape"),
        ("weight_shape", np.array([-8, 64]), "weight_packed"),
        ("weight_shape", np.array([8, 2**60]), "weight_packed"),
        ("weight_packed", np.zeros((8, 7), np.int32), r"\[8, 8\] is needed"),
        ("weight_scale", np.ones((8, 3), np.float16), "3 groups"),
        ("weight_scale", np.ones((7, 4), np.float16), "weight_scale"),
        ("weight_zero_point", None, "weight_zero_point is missing"),
        ("weight_zero_point", np.zeros((2, 4), np.int32), r"\[1, 4\] is needed"),
    ],
)
def test_contradictory_compressed_tensors_are_named(name: str, value: Any, message: str) -> None:
    tensors = {
        "weight_packed": np.zeros((8, 8), np.int32),
        "weight_scale": np.ones((8, 4), np.float16),
        "weight_shape": np.array([8, 64]),
        "weight_zero_point": np.zeros((1, 4), np.int32),
    }
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(CheckpointError, match=message):
        repack.from_compressed(tensors, 4, False, 16)


@pytest.mark.parametrize(
    ("weight", "scale"),
    [
        (np.zeros((4, 8), np.uint8), np.ones((4, 1), np.float16)),
        (np.zeros((4, 8), np.int8), np.ones((4, 2), np.float16)),
        (np.zeros((0, 8), np.int8), np.ones((0, 1), np.float16)),
    ],
)
def test_contradictory_int8_tensors_are_named(weight: Any, scale: Any) -> None:
    with pytest.raises(CheckpointError, match="is needed"):
        repack.from_int8({"weight": weight, "weight_scale": scale})


@pytest.mark.parametrize("bits", [0, 5, 32])
def test_unsupported_bits_of_a_file_are_refused(bits: int) -> None:
    tensors = repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v1")
    del tensors["g_idx"]
    with pytest.raises(ConfigError, match=f"bits is {bits}"):
        repack.from_gptq(tensors, bits, True, "v1", 16)
    packed = repack.to_compressed(random_tensor(QuantFormat(4, 16), 8, 64))
    with pytest.raises(ConfigError, match=f"bits is {bits}"):
        repack.from_compressed(packed, bits, True, 16)


def test_bfloat16_scales_are_read_from_their_bits() -> None:
    tensors = repack.to_int8(random_tensor(QuantFormat(8, -1), 2, 8))
    tensors["weight_scale"] = np.array([[0x3F80], [0xBF00]], np.uint16)
    assert repack.from_int8(tensors).scales_NG.tolist() == [[1.0], [-0.5]]


@pytest.mark.parametrize("bias", [np.ones(7, np.float32), np.ones(8, np.int32)])
def test_bias_of_a_wrong_kind_is_refused(bias: Any) -> None:
    with pytest.raises(ShapeError, match="bias"):
        repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v1", bias)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_bias_that_float16_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ExportError, match="bias"):
        repack.to_gptq(
            random_tensor(QuantFormat(4, 16), 8, 64), "v1", np.full(8, value, np.float32)
        )


@pytest.mark.parametrize(
    ("fmt", "n", "k", "target", "words"),
    [
        (QuantFormat(4, 64), 64, 96, "gptq", ()),
        (QuantFormat(4, 64), 64, 96, "compressed-tensors", ("in_features 96",)),
        (QuantFormat(4, 64), 64, 32, "compressed-tensors", ("in_features 32",)),
        (QuantFormat(3, 32), 40, 96, "gptq", ("out_features 40",)),
        (QuantFormat(3, -1), 40, 72, "gptq_v2", ("out_features 40", "in_features 72")),
        (QuantFormat(3, -1), 40, 72, "compressed-tensors", ()),
        (QuantFormat(4, 48), 64, 96, "gptq", ("group_size 48",)),
        (QuantFormat(4, 96), 64, 96, "gptq", ()),
        (QuantFormat(8, -1, True, "int8_token"), 64, 96, "gptq", ("activations",)),
        (QuantFormat(8, -1, True, "int8_token"), 64, 96, "compressed-tensors", ()),
        (QuantFormat(8, 32, True, "int8_token"), 64, 96, "compressed-tensors", ("per row",)),
        (QuantFormat(4, -1, True, "int8_token"), 64, 96, "compressed-tensors", ("4-bit",)),
    ],
)
def test_requirements(
    fmt: QuantFormat, n: int, k: int, target: str, words: tuple[str, ...]
) -> None:
    reasons = repack.requirements(fmt, n, k, target)
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


@pytest.mark.parametrize(
    ("fmt", "n", "k", "target", "words"),
    [
        (QuantFormat(4, 64), 64, 128, "gptq", ()),
        (QuantFormat(8, -1), 64, 100, "gptq", ()),
        (QuantFormat(4, 64), 64, 96, "gptq", ("in_features 96 % 64", "vLLM")),
        (QuantFormat(4, 64), 40, 128, "gptq_v2", ("out_features 40 % 16",)),
        (QuantFormat(8, 64), 64, 96, "gptq", ("vLLM",)),
        (QuantFormat(4, 64, False), 64, 128, "gptq", ("gptq_v2", "compressed-tensors")),
        (QuantFormat(4, 64, False), 64, 128, "gptq_v2", ("compressed-tensors",)),
        (QuantFormat(4, 64, False), 64, 128, "compressed-tensors", ("dequantize=True",)),
        (QuantFormat(2, 64), 64, 128, "gptq", ("compressed-tensors",)),
        (QuantFormat(2, 64), 64, 128, "compressed-tensors", ()),
    ],
)
def test_reader_limits(
    fmt: QuantFormat, n: int, k: int, target: str, words: tuple[str, ...]
) -> None:
    limits = reader_limits(fmt, n, k, target)
    assert len(limits) == len(words)
    assert all(word in limit for word, limit in zip(words, limits, strict=True))


def test_writers_refuse_what_requirements_names() -> None:
    with pytest.raises(ExportError, match="in_features 40"):
        repack.to_compressed(random_tensor(QuantFormat(4, 16), 8, 40))
    with pytest.raises(ExportError, match="out_features 8"):
        repack.to_gptq(random_tensor(QuantFormat(3, 16), 8, 32), "v1")
    with pytest.raises(ExportError, match="to_int8"):
        repack.to_compressed(random_tensor(QuantFormat(8, -1, True, "int8_token"), 8, 32))
    with pytest.raises(ExportError, match="one scale per row"):
        repack.to_int8(random_tensor(QuantFormat(8, 16), 8, 32))


def test_unknown_targets_and_versions_are_refused() -> None:
    with pytest.raises(ExportError, match="'onnx' is unknown"):
        repack.requirements(QuantFormat(), 8, 8, "onnx")
    with pytest.raises(ExportError, match="'v3' is unknown"):
        repack.to_gptq(random_tensor(QuantFormat(4, 16), 8, 64), "v3")
