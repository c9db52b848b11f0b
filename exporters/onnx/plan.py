"""What an ONNX export will hold, from headers alone, and the errors of what it changes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import bcquant
from bcquant.models.architecture import EMBEDDING, HEAD
from bcquant.models.source import ModelSource
from bcquant.runtime.tokenizer import has_tokenizer
from bcquant.spec.export_plan import ExportPlan, TensorPlan

from .emitter import Emitter
from .float_weights import conversion_error, float_dtype, is_exact
from .graph import Graph
from .model import build
from .options import OnnxOptions
from .proto import model_bytes
from .quantized_weights import rounded_format, rounding_error
from .writer import MODEL_FILE, Layout, too_large

# Variant -> (module, class); imported when it is asked for.
VARIANTS = {"ort": ("ort", "OrtEmitter"), "std": ("std", "StdEmitter")}
FACTS_FILE = "bcquant_export.json"


def emitter_class(variant: str) -> type[Emitter]:
    """The emitter of a key of VARIANTS."""
    module, name = VARIANTS[variant]
    found: type[Emitter] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found


@dataclass(frozen=True)
class Built:
    """A whole export before a byte is written.

    Attributes:
        emitter: with the complete graph.
        layout: where weights go.
        model: bytes of model.onnx.
    """

    emitter: Emitter
    layout: Layout
    model: bytes

    @property
    def graph(self) -> Graph:
        """The complete graph."""
        return self.emitter.graph


def build_export(source: ModelSource, options: OnnxOptions) -> Built:
    """Build the graph and lay it out; only headers are read.

    Raises:
        ExportError: the variant refuses the model (ask `refusals` first).
        ConfigError: the onnx package is missing.
    """
    emitter = emitter_class(options.variant)(Graph(), source, options)
    build(emitter)
    layout = Layout(emitter.graph.weights.values(), options.split_mb)
    metadata = {"bcquant_version": bcquant.__version__, "source": source.path.name}
    model = model_bytes(emitter.graph, layout.places, emitter.opset, emitter.uses_contrib, metadata)
    return Built(emitter, layout, model)


def make_plan(source: ModelSource, options: OnnxOptions) -> tuple[ExportPlan, Built | None]:
    """The plan and, if nothing refuses the model, the built export."""
    refusals = emitter_class(options.variant).refusals(source, options)
    if options.target in ("genai", "web") and not has_tokenizer(source):
        refusals.append(f"{source.path} has no tokenizer, which --target {options.target} needs")
    if refusals:
        return ExportPlan("onnx", (), (), tuple(refusals)), None
    built = build_export(source, options)
    files = (
        (MODEL_FILE, len(built.model)), *built.layout.sizes.items(), (FACTS_FILE, 0),
    )  # fmt: skip
    plan = ExportPlan(
        "onnx",
        files,
        tuple(_tensors(built)),
        tuple(too_large(built.graph.weights.values(), options.split_mb)),
        tuple(_notes(source, options)),
    )
    return plan, built


def measured(
    plan: ExportPlan,
    source: ModelSource,
    options: OnnxOptions,
    progress: Callable[[str, int, int], None],
) -> ExportPlan:
    """The plan with every error measured; every quantized module is read.

    Raises:
        ExportError: a value that the export cannot hold, with the tensor's name.
        CheckpointError: a tensor cannot be read.
    """
    tensors = []
    for index, tensor in enumerate(plan.tensors):
        progress(tensor.name, index, len(plan.tensors))
        if tensor.error is None:
            tensor = replace(tensor, error=_error(source, options, tensor.name))
        elif source.stored_dtype(_weight_name(source, tensor.name)) == "quantized":
            source.quantized(tensor.name)  # refuses codes, zeros and scales that are none
        tensors.append(tensor)
    progress("all", len(plan.tensors), len(plan.tensors))
    return replace(plan, tensors=tuple(tensors))


def is_rounded(source: ModelSource, options: OnnxOptions, name: str) -> bool:
    """Whether --embedding-bits rounds this tensor: a float embedding or head."""
    is_end = name in (EMBEDDING, HEAD)
    return options.embedding_bits != 16 and is_end and source.stored_dtype(name) != "quantized"


def activation_dtype(options: OnnxOptions) -> str:
    """Type of activations, norms and biases."""
    return "F16" if options.float16 else "F32"


def _weight_name(source: ModelSource, name: str) -> str:
    return name if source.has(name) else f"{name}.weight"


def _tensors(built: Built) -> list[TensorPlan]:
    """One row a canonical tensor, in model order."""
    source, options = built.emitter.source, built.emitter.options
    sizes: dict[str, int] = {}
    for weight in built.graph.weights.values():
        owner = weight.name
        if not source.has(owner):  # a part of a module
            owner = weight.name.rpartition(".")[0]
        sizes[owner] = sizes.get(owner, 0) + (0 if weight.bytes_of else weight.num_bytes)
    rows = []
    for name in source.names():
        module = name.removesuffix(".weight")
        if source.stored_dtype(name) == "quantized":
            rows.append(TensorPlan(module, built.emitter.stored_as(module), sizes[module]))
        elif is_rounded(source, options, name):
            fmt = rounded_format(options.embedding_bits, source.shape(name)[1])
            stored_as = f"rounded to {fmt.bits}-bit, blocks of {fmt.group_size}"
            rows.append(TensorPlan(name, stored_as, sizes[module], None))
        else:
            is_matrix = len(source.shape(name)) == 2
            dtype = float_dtype(source, name, options) if is_matrix else activation_dtype(options)
            error = 0.0 if is_exact(source, name, dtype) else None
            rows.append(TensorPlan(name, dtype, sizes[name], error))
    return rows


def _error(source: ModelSource, options: OnnxOptions, name: str) -> float:
    if is_rounded(source, options, name):
        fmt = rounded_format(options.embedding_bits, source.shape(name)[1])
        return rounding_error(source, name, fmt)
    return conversion_error(source, name, "F16")  # nothing else is ever inexact


def runtime_version(source: ModelSource, options: OnnxOptions) -> str:
    """The oldest ONNX Runtime that computes the export right; older ones refuse the file.

    Source: measured with 1.20.1, 1.22.1, 1.23.2, 1.24.1, 1.25.0, 1.26.0 and 1.32.0.
    """
    formats = [
        source.format_of(name.removesuffix(".weight"))
        for name in source.names()
        if source.stored_dtype(name) == "quantized"
    ]
    if options.variant == "ort" and any(fmt and fmt.bits == 2 for fmt in formats):
        return "1.24"
    is_8_bit = any(fmt and fmt.bits == 8 and fmt.activation == "none" for fmt in formats)
    if options.variant == "std" or options.embedding_bits != 16 or is_8_bit:
        return "1.23"
    return "1.22" if source.config.position == "alibi" else "1.20"


def _notes(source: ModelSource, options: OnnxOptions) -> list[str]:
    notes = [f"needs ONNX Runtime {runtime_version(source, options)} or later"]
    blocks = {source.stored_dtype(name) for name in source.names()}
    if any(dtype.startswith("GGUF:") for dtype in blocks) and not options.float16:
        notes.append(
            "GGUF blocks become float32, which holds their values; quantize the model first for a "
            "small export"
        )
    if source.config.norm_head and not options.float16 and not is_rounded(source, options, HEAD):
        notes.append("the NormHead's normalised rows are stored as float32, so nothing is rounded")
    if not has_tokenizer(source):
        notes.append(f"{source.path} has no tokenizer, so none is written")
    if options.variant == "ort":
        notes.append(
            "in a batch of several, shorter prompts are padded on the right, and a call after the "
            "first takes one token a sequence; --variant std takes any padding and number"
        )
    return notes
