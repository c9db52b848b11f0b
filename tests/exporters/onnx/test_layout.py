"""Where weights go: files, alignment, splits, shared bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from bcquant.exporters.onnx.graph import Weight
from bcquant.exporters.onnx.writer import MB, Layout, too_large


def weight(name: str, num_bytes: int, bytes_of: str = "") -> Weight:
    def parts() -> Iterable[Any]:
        yield np.zeros(num_bytes, np.uint8)

    return Weight(name, "U8", (num_bytes,), parts, bytes_of)


def test_large_weights_start_on_pages_and_small_ones_on_cache_lines() -> None:
    layout = Layout([weight("a", 10), weight("b", 100_000), weight("c", 3), weight("d", 5)])
    offsets = [layout.places[name].offset for name in "abcd"]
    assert offsets == [0, 4096, 104_128, 104_192]  # 104096 = 4096 + 100000, then 64 n
    assert layout.sizes == {"model.onnx.data": 104_197}


def test_a_new_file_begins_before_the_limit() -> None:
    sizes = [600_000, 399_000, 2_000, 999_999, 1]
    weights = [weight(str(i), size) for i, size in enumerate(sizes)]
    layout = Layout(weights, split_mb=1)
    files = [layout.places[str(i)].file for i in range(5)]
    names = ["model.onnx.data", "model.onnx.data_1", "model.onnx.data_2", "model.onnx.data_3"]
    assert files == [names[0], names[1], names[1], names[2], names[3]]
    assert list(layout.sizes) == names and max(layout.sizes.values()) <= MB


def test_shared_bytes_are_stored_once() -> None:
    layout = Layout([weight("a", 100), weight("again", 100, bytes_of="a")])
    assert layout.places["again"] == layout.places["a"]
    assert layout.sizes == {"model.onnx.data": 100}


def test_a_weight_larger_than_the_limit_is_named() -> None:
    weights = [weight("small", MB), weight("large", 2 * MB + 1)]
    assert too_large(weights, 3) == [] and too_large(weights, None) == []
    assert too_large(weights, 2) == [
        "large alone has 3 MB and data files may have 2; give --split-mb 3 or more, or "
        "--embedding-bits if it is the embedding"
    ]


def test_four_bit_elements_are_half_bytes() -> None:
    assert Weight("w", "U4", (3, 5), lambda: ()).num_bytes == 8
    assert Weight("w", "F16", (3, 5), lambda: ()).num_bytes == 30
