"""An ONNX graph without its rounding of activations, edited in memory: what is left is arithmetic.

int8 activations turn float noise into whole steps, which later layers amplify; without them a right
graph and the source agree to float noise, and a wrong one shows.
"""

from __future__ import annotations

from typing import Any

_FLOAT = 1  # TensorProto.FLOAT


def leave_rounding_out(model: Any) -> None:
    """Set every accuracy level to 0 and turn MatMulInteger into a product of the values it rounds.

    Args:
        model: a ModelProto; changed in place.
    """
    graph = model.graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
    codes = {node.input[0] for node in graph.node if node.op_type == "MatMulInteger"}
    if not codes:
        return
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "Round":
            node.op_type = "Identity"
        if node.op_type == "Cast" and node.output[0] in codes:
            node.attribute[0].i = _FLOAT
        nodes += _float_product(node) if node.op_type == "MatMulInteger" else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _float_product(node: Any) -> list[Any]:
    """(a - a_zero) @ (b - b_zero) in float32, of the same name and output."""
    from onnx import helper

    nodes: list[Any] = []

    def shifted(value: str, position: int) -> str:
        zero = node.input[position + 2] if len(node.input) > position + 2 else ""
        wide = f"{node.name}/exact_{position}"
        nodes.append(helper.make_node("Cast", [value], [wide], to=_FLOAT))
        if not zero:
            return wide
        nodes.append(helper.make_node("Cast", [zero], [f"{wide}_zero"], to=_FLOAT))
        nodes.append(helper.make_node("Sub", [wide, f"{wide}_zero"], [f"{wide}_shifted"]))
        return f"{wide}_shifted"

    sides = [shifted(node.input[position], position) for position in (0, 1)]
    nodes.append(helper.make_node("MatMul", sides, [node.output[0]], name=node.name))
    return nodes
