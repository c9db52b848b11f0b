"""A graph as an ONNX protobuf whose weights are places in data files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcquant.errors import ConfigError

from .graph import ELEMENT_TYPES, Graph, Value, Weight

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

PRODUCER = "bcquant"
# Contrib operators have had one version since they exist.
_CONTRIB = ("com.microsoft", 1)


@dataclass(frozen=True)
class Place:
    """Where a weight's bytes are: a file beside the model, and where they begin."""

    file: str
    offset: int


def onnx_package() -> Any:
    """The `onnx` package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "the onnx package is missing; pip install onnx, or bcquant[export]"
        ) from error
    return onnx


def model_bytes(
    graph: Graph,
    places: Mapping[str, Place],
    opset: int,
    uses_contrib: bool,
    metadata: Mapping[str, str],
) -> bytes:
    """The serialized model; the same graph gives the same bytes.

    Args:
        places: of every weight of the graph.
        opset: of ai.onnx; the IR version is the lowest that knows it.
        metadata: becomes metadata_props.
    Raises:
        ConfigError: the onnx package is missing or too old for the opset.
    """
    onnx = onnx_package()
    helper = onnx.helper
    domains = [("", opset), *([_CONTRIB] if uses_contrib else [])]
    opsets = [helper.make_opsetid(*domain) for domain in domains]
    constants = [onnx.numpy_helper.from_array(array, n) for n, array in graph.constants.items()]
    body = helper.make_graph(
        [
            helper.make_node(
                node.op, node.inputs, node.outputs, node.name, domain=node.domain, **node.attributes
            )
            for node in graph.nodes
        ],
        PRODUCER,
        [_value_info(helper, value) for value in graph.inputs],
        [_value_info(helper, value) for value in graph.outputs],
        [*constants, *(_external(onnx, w, places[w.name]) for w in graph.weights.values())],
    )
    try:
        ir_version = helper.find_min_ir_version_for(opsets, ignore_unknown=True)
    except ValueError as error:
        raise ConfigError(
            f"onnx {onnx.__version__} does not know opset {opset}; pip install -U onnx"
        ) from error
    model: ModelProto = helper.make_model(
        body, producer_name=PRODUCER, opset_imports=opsets, ir_version=ir_version
    )
    helper.set_model_props(model, dict(metadata))
    return bytes(model.SerializeToString(deterministic=True))


def _value_info(helper: Any, value: Value) -> Any:
    return helper.make_tensor_value_info(value.name, ELEMENT_TYPES[value.dtype], value.shape)


def _external(onnx: Any, weight: Weight, place: Place) -> TensorProto:
    tensor: TensorProto = onnx.TensorProto(
        name=weight.name,
        data_type=ELEMENT_TYPES[weight.dtype],
        dims=weight.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    entries = (
        ("location", place.file), ("offset", place.offset), ("length", weight.num_bytes),
    )  # fmt: skip
    for key, value in entries:
        tensor.external_data.add(key=key, value=str(value))
    return tensor
