"""What an ONNX export is: operators, block sizes and types, from its graph without its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcquant.errors import CheckpointError
from bcquant.io.json_file import read_json_object
from bcquant.io.onnx_file import read_onnx
from bcquant.loaders._facts import Facts
from bcquant.quant.onnx_blocks import block_size_of, container_bits, has_zero_points, requirements

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

MODEL_FILE = "model.onnx"
EXPORT_FILE = "bcquant_export.json"
GENAI_FILE = "genai_config.json"
MS = "com.microsoft."
_FLOAT16 = 10  # TensorProto.FLOAT16
_ATTENTION_BIAS = 10  # its place among GroupQueryAttention's inputs


@dataclass(frozen=True)
class NBitsUse:
    """How MatMulNBits nodes of a graph store their weight; equal ones are one."""

    bits: int
    block_size: int
    has_zero_points: bool = False
    has_g_idx: bool = False


@dataclass(frozen=True)
class OnnxGraph:
    """The parts of a graph that decide where it runs.

    Attributes:
        ops: operator -> number of nodes; those of com.microsoft carry the domain in their name.
        nbits: of the MatMulNBits nodes.
        is_float16: activations and caches are float16, not float32.
        is_fixed: every input has a fixed shape.
        has_attention_bias: GroupQueryAttention is given a bias (ALiBi).
    """

    ops: Mapping[str, int]
    nbits: frozenset[NBitsUse]
    is_float16: bool
    is_fixed: bool
    has_attention_bias: bool

    def has(self, op: str) -> bool:
        """Whether a node of this operator is there."""
        return self.ops.get(op, 0) > 0


@dataclass(frozen=True)
class OnnxFacts:
    """An ONNX model on disk.

    Attributes:
        path: the folder, or the .onnx file.
        exporter: what bcquant_export.json says wrote it, "" if there is no such file.
        genai_type: model.type of genai_config.json, None if there is no such file.
        has_tokenizer: tokenizer.json and tokenizer_config.json are there.
        missing: data files that the graph names and that are not there.
        file_bytes: of the graph and its data files.
    """

    path: Path
    graph: OnnxGraph
    exporter: str
    genai_type: str | None
    has_tokenizer: bool
    missing: tuple[str, ...]
    file_bytes: int


def find_onnx(path: Path) -> Path | None:
    """The .onnx file that a path means, None if it means none."""
    if path.suffix.lower() == ".onnx":
        return path
    if not path.is_dir():
        return None
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if (path / GENAI_FILE).is_file():
        decoder = _genai(path).get("decoder")
        name = decoder.get("filename") if isinstance(decoder, Mapping) else None
        return path / name if isinstance(name, str) else None
    return None


def collect_onnx_facts(file: Path) -> OnnxFacts:
    """Read a graph; its data files are not opened.

    Raises:
        CheckpointError: it is missing or is no ONNX file.
        ConfigError: the onnx package is not installed.
    """
    folder = file.parent
    graph, names = _read(file)
    data = [folder / name for name in names]
    is_genai = (folder / GENAI_FILE).is_file()
    tokenizer = ("tokenizer.json", "tokenizer_config.json")
    return OnnxFacts(
        path=folder if file.name == MODEL_FILE else file,
        graph=graph,
        exporter=_exporter(folder),
        genai_type=str(_genai(folder).get("type", "")) if is_genai else None,
        has_tokenizer=all((folder / name).is_file() for name in tokenizer),
        missing=tuple(p.name for p in data if not p.is_file()),
        file_bytes=sum(p.stat().st_size for p in [file, *data] if p.is_file()),
    )


def planned_graph(facts: Facts, float16: bool) -> OnnxGraph:
    """The graph that `bcquant export onnx` writes of a checkpoint, as far as rules ask about it."""
    ops = dict.fromkeys(
        (
            "Gather", "MatMul", "Add", "Mul", "Sigmoid", "SimplifiedLayerNormalization",
            MS + "SkipSimplifiedLayerNormalization", MS + "GroupQueryAttention",
        ), 1,
    )  # fmt: skip
    nbits = set()
    for linear in facts.linears:
        fmt = linear.format
        if fmt.activation == "int8_token":
            ops["MatMulInteger"] = 1
        elif not requirements(fmt, linear.k):
            size = block_size_of(fmt, linear.k)
            nbits.add(NBitsUse(container_bits(fmt), size, has_zero_points(fmt)))
    if nbits:
        ops[MS + "MatMulNBits"] = len(nbits)
    is_alibi = facts.config is not None and facts.config.position == "alibi"
    return OnnxGraph(ops, frozenset(nbits), float16, False, is_alibi)


def _read(file: Path) -> tuple[OnnxGraph, list[str]]:
    """The graph and the names of its data files."""
    graph = read_onnx(file).graph
    ops: dict[str, int] = {}
    nbits, has_bias = set(), False
    for node in _nodes(graph):
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        ops[name] = ops.get(name, 0) + 1
        if name == MS + "MatMulNBits":
            nbits.add(_nbits_use(node))
        if name == MS + "GroupQueryAttention":
            has_bias = has_bias or any(node.input[_ATTENTION_BIAS : _ATTENTION_BIAS + 1])
    if not ops:
        raise CheckpointError(f"{file}: a graph without a node; it is no export, write it again")
    inputs = [value.type.tensor_type for value in graph.input]
    types = {value.elem_type for value in inputs} | {
        value.type.tensor_type.elem_type for value in graph.output
    }
    fixed = all(dim.HasField("dim_value") for value in inputs for dim in value.shape.dim)
    names = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    found = OnnxGraph(ops, frozenset(nbits), _FLOAT16 in types, fixed, has_bias)
    return found, sorted(names)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Nodes of a graph and of the graphs in its attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _nbits_use(node: NodeProto) -> NBitsUse:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    given = [bool(name) for name in node.input] + [False] * 6
    return NBitsUse(numbers.get("bits", 4), numbers.get("block_size", 0), given[3], given[4])


def _exporter(folder: Path) -> str:
    file = folder / EXPORT_FILE
    return str(read_json_object(file).get("exporter", "")) if file.is_file() else ""


def _genai(folder: Path) -> Mapping[str, Any]:
    model = read_json_object(folder / GENAI_FILE).get("model")
    return model if isinstance(model, Mapping) else {}
