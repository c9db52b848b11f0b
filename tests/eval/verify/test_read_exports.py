"""Readers of an export's bytes: what is read back, and hostile or foreign files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import planted_faults as faults
import pytest

from bcquant.errors import CheckpointError
from bcquant.eval.verify.read_gguf import GgufWeights
from bcquant.eval.verify.read_onnx import OnnxWeights
from bcquant.eval.verify.stored_weights import compare_weights, integers_of
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

Fixture = Callable[..., Any]
UP = "model.layers.1.mlp.up_proj"
W8A8 = QuantFormat(8, -1, True, "int8_token")


@pytest.mark.parametrize(
    ("target", "fmt", "words"),
    [
        ("v1", QuantFormat(4, 32), ("onnx",)),
        ("compressed-tensors", QuantFormat(3, 64, False), ("onnx",)),
        ("v2", QuantFormat(8, -1), ("onnx", "--variant", "std")),
        ("compressed-tensors", QuantFormat(4, 32, False), ("onnx", "--variant", "std")),
        ("int-quantized", W8A8, ("onnx",)),
        ("v1", QuantFormat(4, 32), ("gguf",)),
        ("compressed-tensors", QuantFormat(4, 64, False), ("gguf",)),
        ("v2", QuantFormat(8, 32), ("gguf",)),
    ],
)
def test_every_integer_and_scale_is_read_back(
    target: str,
    fmt: QuantFormat,
    words: tuple[str, ...],
    make_source: Fixture,
    make_export: Fixture,
) -> None:
    source_path = make_source("llama", target, fmt)
    export = make_export(source_path, *words)
    stored = GgufWeights(export) if words[0] == "gguf" else OnnxWeights(export)
    with open_model(source_path) as source:
        for module in (UP, "model.layers.0.self_attn.q_proj"):
            q = source.quantized(module)
            assert q is not None
            ours, theirs = integers_of(q), stored.integers(module)
            assert theirs is not None and theirs.is_exact
            assert np.array_equal(ours.levels_NK, theirs.levels_NK)
            step = ours.width // theirs.width
            assert np.array_equal(np.repeat(ours.scales_NG, step, axis=1), theirs.scales_NG)
            assert stored.shape(f"{module}.weight") == q.codes_NK.shape
    stored.close()


def test_gguf_that_was_rounded_a_second_time_is_measured_not_refused(
    make_source: Fixture, make_export: Fixture, own: Fixture
) -> None:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    source_path = make_source()
    export = own(make_export(source_path, "gguf"))
    with open_model(source_path) as source:
        weight = source.weight(f"{UP}.weight")

        def round_again(rows: Any) -> None:
            rows[:] = quantize(weight, GGMLQuantizationType.Q4_0)

        faults.edit_gguf_tensor(export, "blk.1.ffn_up.weight", round_again)
        stored = GgufWeights(export)
        diffs = compare_weights(source, stored, lambda what, done, total: None)
        stored.close()
    (wrong,) = [diff for diff in diffs if not diff.is_equal]
    assert wrong.name == f"{UP}.weight" and wrong.stored_as == "Q4_0"
    # Q4_0's own rule has 8 steps up to the largest value, the source's grid has 7.5: new integers.
    assert wrong.changed > 0.2 and 0.01 < wrong.error < 0.2


def edit_model(folder: Path, edit: Callable[[Any], None]) -> None:
    import onnx

    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit({tensor.name: tensor for tensor in model.graph.initializer}[f"{UP}.b"])
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def set_place(key: str, value: str) -> Callable[[Any], None]:
    def edit(tensor: Any) -> None:
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return edit


def set_type(tensor: Any) -> None:
    tensor.data_type = 9


def lengthen(tensor: Any) -> None:
    tensor.dims[0] += 64


def flatten(tensor: Any) -> None:
    del tensor.dims[1:]


def enlarge(tensor: Any) -> None:
    tensor.dims[0] = 1 << 50


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_place("location", "../secret"), "neither inside nor in a file beside it"),
        (set_place("location", "none.data"), "none.data: the file does not exist"),
        (set_place("offset", "99999999999"), "needs 4096 bytes from 99999999999 but the file has"),
        (set_place("offset", "-64"), "needs 4096 bytes from -64"),
        (set_place("offset", "first"), "needs 4096 bytes from first"),
        (set_type, "has element type 9"),
        (lengthen, "contradicts itself"),
        (flatten, "contradicts itself"),
        (enlarge, "export the model again"),
    ],
)
def test_hostile_graph_is_refused(
    edit: Callable[[Any], None],
    said: str,
    make_source: Fixture,
    make_export: Fixture,
    own: Fixture,
) -> None:
    export = own(make_export(make_source(), "onnx"))
    edit_model(export, edit)
    stored = OnnxWeights(export)
    with pytest.raises(CheckpointError, match=said):
        stored.integers(UP)
    stored.close()


def test_node_without_an_attribute_is_refused(
    make_source: Fixture, make_export: Fixture, own: Fixture
) -> None:
    export = own(make_export(make_source(), "onnx"))

    def drop(node: Any) -> None:
        kept = [attribute for attribute in node.attribute if attribute.name != "K"]
        del node.attribute[:]
        node.attribute.extend(kept)

    faults.edit_onnx_nodes(export, drop)
    stored = OnnxWeights(export)
    with pytest.raises(CheckpointError, match="contradicts itself \\('K' is missing\\)"):
        stored.shape(f"{UP}.weight")
    stored.close()
