"""What the bindings refuse, and who computes: tiers, pools, threads, forks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_cases import TIERS, activations, pack
from vectors.make_vectors import random_weight

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels import native

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = native.context()
WEIGHT = pack(random_weight(20, 64, 4, 32, True, 0))


def f32(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ones(shape, np.float32)


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.setflags(write=False)
    return array


def askew(m: int, k: int) -> np.ndarray[Any, Any]:
    """float32 at an address that is no multiple of 4."""
    raw = np.zeros(m * k * 4 + 4, np.uint8)
    start = 1 - raw.ctypes.data % 4 % 2
    return raw[start : start + m * k * 4].view(np.float32).reshape(m, k)


WRONG_X = {
    "float64": np.ones((3, 64)),
    "float16": np.ones((3, 64), np.float16),
    "other byte order": np.ones((3, 64), ">f4"),
    "K": f32(3, 63),
    "rank 1": f32(64),
    "rank 3": f32(1, 3, 64),
    "gaps in a row": f32(3, 128)[:, ::2],
    "columns in order": np.asfortranarray(f32(3, 64)),
    "rows backwards": f32(3, 64)[::-1],
    "one row repeated": np.broadcast_to(f32(1, 64), (3, 64)),
    "askew": askew(3, 64),
    "no array": [[1.0] * 64] * 3,
    "None": None,
}


@pytest.mark.parametrize("name", WRONG_X)
def test_linear_refuses_an_x_that_does_not_fit(name: str) -> None:
    with pytest.raises(ShapeError, match="x"):
        native.linear(CONTEXT, [WEIGHT], WRONG_X[name], [f32(3, 20)])  # type: ignore[arg-type]


WRONG_Y = {
    "float64": np.ones((3, 20)),
    "N": f32(3, 21),
    "M": f32(2, 20),
    "rank 1": f32(60),
    "gaps in a row": f32(3, 40)[:, ::2],
    "read-only": read_only(f32(3, 20)),
    "rows that overlap": np.lib.stride_tricks.as_strided(f32(100), (3, 20), (40, 4)),
    "bytes": bytes(240),
}


@pytest.mark.parametrize("name", WRONG_Y)
def test_linear_refuses_a_y_that_does_not_fit(name: str) -> None:
    with pytest.raises(ShapeError, match="y"):
        native.linear(CONTEXT, [WEIGHT], f32(3, 64), [WRONG_Y[name]])  # type: ignore[list-item]


def test_linear_names_what_it_got_and_what_it_needs() -> None:
    with pytest.raises(ShapeError, match=r"x is float32\[3, 63\]; shape \['M', 64\] is needed"):
        native.linear(CONTEXT, [WEIGHT], f32(3, 63), [f32(3, 20)])


def test_linear_refuses_a_result_that_shares_memory() -> None:
    square = pack(random_weight(64, 64, 4, 32, True, 0))
    x, wide = f32(3, 64), f32(3, 100)
    for xs, ys, weights in (
        (x, [x], [square]),
        (wide[:, :64], [wide[:, 63:83]], [WEIGHT]),
        (wide[1:, :64], [wide[:2, 36:]], [square]),
        (x, [wide[:, :20], wide[:, 19:39]], [WEIGHT, WEIGHT]),
    ):
        with pytest.raises(ShapeError, match="share memory"):
            native.linear(CONTEXT, weights, xs, ys)


def test_linear_refuses_wrong_numbers_of_weights() -> None:
    x, y = f32(3, 64), f32(3, 20)
    for weights, ys in (([], []), ([WEIGHT], []), ([WEIGHT] * 9, [y] * 9)):
        with pytest.raises(ShapeError, match="pairs"):
            native.linear(CONTEXT, weights, x, ys)


def test_linear_refuses_weights_of_different_groups() -> None:
    other = pack(random_weight(20, 64, 4, 64, True, 0))
    with pytest.raises(KernelError, match=r"linear of x \[3, 64\] by .*group_size=64"):
        native.linear(CONTEXT, [WEIGHT, other], f32(3, 64), [f32(3, 20), f32(3, 20)])


def test_linear_refuses_one_scale_a_token_over_groups() -> None:
    with pytest.raises(KernelError, match="precision 2"):
        native.linear(CONTEXT, [WEIGHT], f32(3, 64), [f32(3, 20)], "int8_token")


def test_linear_refuses_an_unknown_precision() -> None:
    with pytest.raises(KernelError, match="'int4' is not one of exact, int8, int8_token"):
        native.linear(CONTEXT, [WEIGHT], f32(3, 64), [f32(3, 20)], "int4")


def test_embed_refuses_ids_that_are_none() -> None:
    for ids, error in (
        ([20], KernelError), ([-1], KernelError), ([0, 1], ShapeError),
    ):  # fmt: skip
        with pytest.raises(error):
            native.embed(CONTEXT, WEIGHT, np.array(ids, np.int32), f32(1, 64))
    with pytest.raises(ShapeError, match="int32"):
        native.embed(CONTEXT, WEIGHT, np.array([1]), f32(1, 64))  # type: ignore[arg-type]


def test_operations_refuse_arrays_that_do_not_fit() -> None:
    x, cos = f32(3, 64), f32(3, 16)
    calls = [
        lambda: native.rmsnorm(CONTEXT, x, f32(63), 1e-5, x),
        lambda: native.rmsnorm(CONTEXT, x, f32(64), 1e-5, f32(2, 64)),
        lambda: native.rope(CONTEXT, x, 3, cos, cos),
        lambda: native.rope(CONTEXT, x, 0, cos, cos),
        lambda: native.rope(CONTEXT, x, 2, cos, f32(2, 16)),
        lambda: native.silu_mul(CONTEXT, x, f32(3, 63), x),
        lambda: native.add(CONTEXT, x, x),
        lambda: native.argmax(CONTEXT, f32(0)),
        lambda: native.softmax(CONTEXT, f32(3)),
    ]
    for call in calls:
        with pytest.raises(ShapeError):
            call()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_softmax_refuses_a_temperature(temperature: float) -> None:
    with pytest.raises(KernelError, match="temperature"):
        native.softmax(CONTEXT, f32(1, 8), temperature)


@pytest.mark.parametrize(
    ("num_heads", "head_dim", "capacity"),
    [(0, 16, 16), (1, 15, 16), (1, 272, 16), (1, 16, 15), (1, 16, 0), (-1, 16, 16),
     (1 << 40, 256, 1 << 40)],
)  # fmt: skip
def test_a_cache_refuses_sizes(num_heads: int, head_dim: int, capacity: int) -> None:
    with pytest.raises(KernelError, match="a cache of type"):
        native.kv_cache("f16", num_heads, head_dim, capacity)


def test_a_cache_refuses_an_unknown_type() -> None:
    with pytest.raises(KernelError, match="'f8' is not one of f32, f16, int8"):
        native.kv_cache("f8", 1, 16, 16)


def test_attention_refuses_what_does_not_fit() -> None:
    cache = native.kv_cache("f32", 2, 16, 32)
    cache.append(CONTEXT, 0, f32(20, 32), f32(20, 32))
    for first in (-1, 13, 32, 1 << 62):
        with pytest.raises(KernelError, match="cache of 32"):
            cache.append(CONTEXT, first, f32(20, 32), f32(20, 32))
    with pytest.raises(ShapeError, match="values"):
        cache.append(CONTEXT, 0, f32(2, 32), f32(1, 32))
    for first, width, error in (
        (31, 64, KernelError), (-1, 64, KernelError), (0, 48, KernelError), (0, 40, ShapeError),
    ):  # fmt: skip
        with pytest.raises(error):
            native.attend(CONTEXT, cache, f32(2, width), f32(2, width), first, 0.25)
    with pytest.raises(KernelError):
        native.attend(CONTEXT, cache, f32(1, 32), f32(1, 32), 0, 0.25, window=-1)
    with pytest.raises(ShapeError, match="alibi"):
        native.attend(CONTEXT, cache, f32(1, 32), f32(1, 32), 0, 0.25, alibi=f32(3))


def test_scalar_is_always_there_and_last() -> None:
    assert TIERS[-1] == "scalar"
    assert native.context(1, "scalar").tier == "scalar"


@pytest.mark.parametrize("tier", TIERS)
def test_the_tier_that_runs_is_the_tier_asked_for(tier: str) -> None:
    try:
        assert native.context(1, tier).tier == tier
    except KernelError as error:
        assert tier in str(error)  # this CPU lacks it; never another in its place


def test_an_unknown_tier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(KernelError, match=r"kernel tier 'sse9'.*scalar"):
        native.context(1, "sse9")


def run_with_tier(tier: str) -> subprocess.CompletedProcess[str]:
    code = "from bcquant.kernels import native; print(native.active_tier())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "BCQ_FORCE_TIER": tier},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_environment_forces_a_tier() -> None:
    assert run_with_tier("scalar").stdout.strip() == "scalar"


@pytest.mark.parametrize("tier", ["sse9", "SCALAR", "wasm_simd128"])
def test_the_environment_forces_no_other_tier_than_it_names(tier: str) -> None:
    done = run_with_tier(tier)
    assert done.returncode == 1
    assert "KernelError: kernels of this CPU" in done.stderr


def test_the_tier_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    native._announce.cache_clear()
    native.context.cache_clear()
    with caplog.at_level(logging.INFO):
        native.context(1, "scalar")
        native.context(2, "scalar")
    assert caplog.messages == ["kernel tier: scalar"]


@pytest.mark.parametrize("num_threads", [0, -1, 257])
def test_a_pool_refuses_a_number_of_threads(num_threads: int) -> None:
    with pytest.raises(KernelError, match=f"{num_threads} threads"):
        native.Pool(num_threads)


def test_one_pool_serves_several_python_threads() -> None:
    context = native.Context(native.Pool(2))
    x = activations(20, 64)
    wanted = np.empty((20, 20), np.float32)
    native.linear(context, [WEIGHT], x, [wanted], "int8")

    def work(_: int) -> bool:
        y = np.empty((20, 20), np.float32)
        for _ in range(50):
            native.linear(context, [WEIGHT], x, [y], "int8")
            if not np.array_equal(y, wanted):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_a_pool_works_in_a_forked_child() -> None:
    code = (
        "import os, sys\n"
        "sys.path.insert(0, 'tests')\n"
        "import numpy as np\n"
        "from bcquant.kernels import native\n"
        "from kernel_cases import activations, linear\n"
        "from vectors.make_vectors import random_weight\n"
        "context = native.context(2)\n"
        "w, x = random_weight(700, 512, 4, 32, True, 0), activations(20, 512)\n"
        "wanted = linear(context, w, x, 'int8')\n"
        "child = os.fork()\n"
        "same = np.array_equal(linear(context, w, x, 'int8'), wanted)\n"
        "if child == 0:\n"
        "    del context\n"
        "    os._exit(0 if same else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0 and same\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
