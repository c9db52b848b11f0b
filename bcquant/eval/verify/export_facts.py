"""What lies at a path: which kind of export, and which arithmetic it asks its runtime for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bcquant.errors import CheckpointError
from bcquant.eval.verify.read_checkpoint import CheckpointWeights
from bcquant.eval.verify.read_gguf import GgufWeights
from bcquant.eval.verify.read_onnx import MODEL_FILE, OnnxWeights
from bcquant.eval.verify.read_package import PackageWeights, is_package
from bcquant.eval.verify.stored_weights import StoredWeights, TensorDiff
from bcquant.eval.verify.thresholds import KINDS, Thresholds

_FLOATS = {"BF16": "bfloat16", "F16": "float16"}  # the coarser first
_ONNX_F16 = 10
_ROUNDING_LEVEL = 4  # of MatMulNBits


def open_export(path: Path) -> StoredWeights:
    """Open the weights of an export.

    Raises:
        CheckpointError: nothing is there, it is no export, or a file of it is damaged.
        ConfigError: its model is of a kind that is not supported.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; give an export")
    if path.suffix.lower() == ".gguf":
        return GgufWeights(path)
    if is_package(path):
        return PackageWeights(path)
    if (path / MODEL_FILE).is_file():
        return OnnxWeights(path)
    if (path / "config.json").is_file():
        return CheckpointWeights(path)
    raise CheckpointError(
        f"{path}: not an export; a .gguf or .bcq file, or a folder with {MODEL_FILE} or "
        "config.json, is needed"
    )


@dataclass(frozen=True)
class Arithmetic:
    """What an export asks its runtime to compute with.

    Attributes:
        limits: for the export as it is run.
        graph: for its graph alone, without the rounding of activations that a runtime adds.
        has_exact_mode: the runtime can be told to leave that rounding out.
    """

    limits: Thresholds
    graph: Thresholds
    has_exact_mode: bool = False


def arithmetic_of(
    stored: StoredWeights, rounds_activations: bool, diffs: Sequence[TensorDiff]
) -> Arithmetic:
    """The limits that fit an export.

    Args:
        rounds_activations: the source's own meaning has int8 activations (W8A8).
        diffs: its tensors beside the source's.
    """
    if isinstance(stored, PackageWeights):
        found = _of_package(stored, diffs)
    else:
        found = _arithmetic(stored)
    if rounds_activations and found.limits.kind in ("int8", "bfloat16"):
        return replace(found, limits=KINDS["int8_token"])
    return found


def _arithmetic(stored: StoredWeights) -> Arithmetic:
    if isinstance(stored, OnnxWeights):
        return _of_graph(stored)
    if isinstance(stored, GgufWeights):
        types = {t.info.dtype for t in stored.tensors.values() if len(t.info.shape) == 2}
        floats = KINDS[next((kind for dtype, kind in _FLOATS.items() if dtype in types), "float32")]
        # llama.cpp rounds activations to what the weight's type is multiplied with.
        is_packed = any(dtype.startswith("GGUF:") for dtype in types)
        return Arithmetic(KINDS["int8"] if is_packed else floats, floats)
    # On a CPU transformers takes gptqmodel's bfloat16 product for packed weights.
    is_float = isinstance(stored, CheckpointWeights) and stored.is_float
    return Arithmetic(KINDS["float32" if is_float else "bfloat16"], KINDS["float32"])


def _of_package(stored: PackageWeights, diffs: Sequence[TensorDiff]) -> Arithmetic:
    """Float32, over matrices that float16 may not have held: then they are the source's rounded."""
    has_rounded = any(d.stored_as == "F16" and d.is_rounded and not d.is_equal for d in diffs)
    exact = KINDS["float16" if has_rounded else "float32"]
    rounds = stored.model.activations > 0
    return Arithmetic(KINDS["int8"] if rounds else exact, exact, has_exact_mode=rounds)


def _of_graph(stored: OnnxWeights) -> Arithmetic:
    logits = next(value for value in stored.graph.output if value.name == "logits")
    graph = KINDS["float16" if logits.type.tensor_type.elem_type == _ONNX_F16 else "float32"]
    operators = {node.op_type for node in stored.graph.node}
    levels = {a.i for n in stored.graph.node for a in n.attribute if a.name == "accuracy_level"}
    # ONNX Runtime fuses DequantizeLinear with its product, by default at accuracy level 4.
    rounds = _ROUNDING_LEVEL in levels or operators & {"MatMulInteger", "DequantizeLinear"}
    return Arithmetic(KINDS["int8"] if rounds else graph, graph, has_exact_mode=bool(rounds))
