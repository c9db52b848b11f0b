"""One ONNX graph in the making: nodes in order, small constants inside, weights beside.

Nothing is traced and nothing large is held: a weight is a shape, a type and a function that yields
its bytes when the data file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int | str, ...]

# ONNX element types by the names used here. Values are TensorProto.DataType.
ELEMENT_TYPES = {
    "F32": 1, "U8": 2, "I8": 3, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "BF16": 16, "U4": 21,
    "I4": 22,
}  # fmt: skip
ELEMENT_BITS = {
    "F32": 32, "U8": 8, "I8": 8, "I32": 32, "I64": 64, "BOOL": 8, "F16": 16, "BF16": 16, "U4": 4,
    "I4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """An initializer in the external data file.

    Attributes:
        name: in the graph: a canonical tensor's own name, module + "." + a part's name for a
            quantized module, anything else for what is no tensor of the model.
        dtype: a key of ELEMENT_TYPES.
        shape: of the elements; 4-bit elements are two to a byte, the even one low.
        parts: yields arrays whose bytes, in order, are the data; called once a write.
        bytes_of: another weight whose bytes these are too; "" = they are stored for this one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Array]]
    bytes_of: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        count = 1
        for size in self.shape:
            count *= size
        return -(-count * ELEMENT_BITS[self.dtype] // 8)


@dataclass(frozen=True)
class Value:
    """A graph input or output: name, element type, sizes or names of dynamic axes."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Node:
    """One operation; domain "" is ai.onnx."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str
    domain: str
    attributes: dict[str, Any]


class Graph:
    """Nodes, constants, weights, inputs and outputs, in the order they were added."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.weights: dict[str, Weight] = {}
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []

    def input(self, name: str, dtype: str, shape: Shape) -> str:
        """Declare a graph input; its name."""
        self.inputs.append(Value(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Shape) -> None:
        """Declare that a value is a graph output."""
        self.outputs.append(Value(name, dtype, shape))

    def nodes_out(
        self,
        op: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Append a node with named outputs ("" = not wanted); returns them.

        The node is named after its first wanted output. Trailing "" inputs are dropped.
        """
        names = tuple(outputs)
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        label = next(name for name in names if name)
        self.nodes.append(Node(op, tuple(given), names, f"{label}/{op}", domain, attributes))
        return names

    def node(
        self, op: str, inputs: Iterable[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node of one output; returns its name."""
        return self.nodes_out(op, inputs, (output,), domain, **attributes)[0]

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        """A small array inside the protobuf; the same name twice must mean the same array."""
        array = np.asarray(values, dtype)
        if name in self.constants:
            assert np.array_equal(self.constants[name], array), f"two constants named {name}"
        self.constants[name] = array
        return name

    def weight(self, weight: Weight) -> str:
        """An array in the data file; adding the same name again changes nothing."""
        self.weights.setdefault(weight.name, weight)
        return weight.name
