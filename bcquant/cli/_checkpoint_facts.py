"""What can be said about a checkpoint from its headers alone: the data behind `bcquant inspect`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bcquant.errors import BcquantError, CheckpointError
from bcquant.io.checkpoint import CheckpointReader, TensorInfo, open_checkpoint
from bcquant.io.dtypes import tensor_bytes
from bcquant.io.folder import find_weights
from bcquant.io.json_file import read_json_object
from bcquant.quant.quant_configs import QuantSpec, parse_quant_config
from bcquant.spec.quant_format import QuantFormat

# Tensors that belong to the weight named first in each row; they carry no weights of their own.
_QUANTIZED_PARTS = {
    "qweight": ("qzeros", "scales", "g_idx"),
    "weight_packed": ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "weight": ("weight_scale", "weight_zero_point", "input_scale"),
}


@dataclass(frozen=True)
class TensorRow:
    """One stored tensor.

    Attributes:
        num_bytes: of its data in the file.
        num_weights: numbers of the model that it stands for; 0 for a part of another tensor
            (scales, zeros, indexes) and for a packed tensor that cannot be interpreted.
        bits_per_weight: bits of it and its parts over `num_weights`; None where that is 0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    num_weights: int
    bits_per_weight: float | None


@dataclass(frozen=True)
class Facts:
    """What a checkpoint is.

    Attributes:
        kind: "safetensors", "torch_bin" or "gguf".
        architecture: class name of config.json, or general.architecture of a GGUF; "" if unsaid.
        family: key of bcquant's table, None where there is none.
        quant: how it is quantized, None for float checkpoints and GGUF.
        in_main_config: config.json itself says how it is quantized.
        linear_shapes: (N, K) of the quantized modules, without repetition.
        tokenizer: which tokenizer lies beside or in it, in words; "" if none.
        file_bytes: size of the weight files.
        problem: why bcquant cannot use the model, None when it can.
    """

    path: Path
    kind: str
    architecture: str
    family: str | None
    quant: QuantSpec | None
    in_main_config: bool
    rows: tuple[TensorRow, ...]
    linear_shapes: tuple[tuple[int, int], ...]
    tokenizer: str
    file_bytes: int
    problem: str | None

    @property
    def num_weights(self) -> int:
        """Numbers of the model."""
        return sum(row.num_weights for row in self.rows)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of all tensors over all numbers of the model; None where a part is unreadable."""
        unknown = any(_is_packed(r.name, r.dtype) and not r.num_weights for r in self.rows)
        total = self.num_weights
        return None if unknown or not total else 8 * sum(r.num_bytes for r in self.rows) / total

    @property
    def format_name(self) -> str:
        """The format in words, e.g. "GPTQ v1, 4-bit, group 64, symmetric"."""
        if self.kind == "gguf":
            return "GGUF, " + _gguf_types(self.rows)
        files = "safetensors" if self.kind == "safetensors" else "pytorch_model.bin"
        if self.quant is None:
            return f"float weights in {files}"
        spec = self.quant
        name = f"GPTQ {spec.version}" if spec.method == "gptq" else f"{spec.method} {spec.version}"
        mixed = ", mixed" if any(o.format is not None for o in spec.dynamic) else ""
        return f"{name}, {describe_format(spec.format)}{mixed}, in {files}"


def describe_format(fmt: QuantFormat) -> str:
    """A format in words, e.g. "4-bit, group 64, symmetric"."""
    group = "one scale per row" if fmt.group_size == -1 else f"group {fmt.group_size}"
    symmetry = "symmetric" if fmt.symmetric else "asymmetric"
    tail = ", int8 activations per token" if fmt.activation == "int8_token" else ""
    return f"{fmt.bits}-bit, {group}, {symmetry}{tail}"


def linear_bits_per_weight(facts: Facts) -> float:
    """Stored bits per weight of the quantized modules alone; nan where there is none."""
    packed = [
        r for r in facts.rows if r.bits_per_weight is not None and _is_packed(r.name, r.dtype)
    ]
    weights = sum(row.num_weights for row in packed)
    bits = sum((row.bits_per_weight or 0.0) * row.num_weights for row in packed)
    return bits / weights if weights else math.nan


def collect_facts(path_or_hub_id: str) -> Facts:
    """Open a checkpoint, read its headers, close it.

    A model that bcquant cannot run is described all the same; `problem` says why it cannot.

    Raises:
        CheckpointError: it cannot be opened as a checkpoint at all.
    """
    with open_checkpoint(path_or_hub_id) as reader:
        folder = reader.path if reader.path.is_dir() else reader.path.parent
        quant, problem = _quant_spec(reader, folder)
        family, family_problem = _family(reader)
        rows, shapes = _tensor_rows(reader, quant)
        problem = problem or family_problem or _open_problem(reader.path)
        return Facts(
            path=reader.path,
            kind=reader.kind,
            architecture=_architecture(reader),
            family=family,
            quant=quant,
            in_main_config="quantization_config" in reader.config,
            rows=rows,
            linear_shapes=shapes,
            tokenizer=_tokenizer(reader, folder),
            file_bytes=_file_bytes(reader.path),
            problem=problem,
        )


def _quant_spec(reader: CheckpointReader, folder: Path) -> tuple[QuantSpec | None, str | None]:
    if reader.kind == "gguf":
        return None, None
    beside = folder / "quantize_config.json"
    try:
        other = read_json_object(beside) if beside.exists() else None
        return parse_quant_config(reader.config, other), None
    except BcquantError as error:
        return None, str(error)


def _family(reader: CheckpointReader) -> tuple[str | None, str | None]:
    from bcquant.models.architecture import find_architecture, find_gguf_architecture

    try:
        if reader.kind == "gguf":
            return find_gguf_architecture(reader.metadata).key, None
        return find_architecture(reader.config).key, None
    except BcquantError as error:
        return None, str(error)


def _open_problem(path: Path) -> str | None:
    from bcquant.models.source import open_model

    try:
        open_model(path).close()
    except BcquantError as error:
        return str(error)
    return None


def _architecture(reader: CheckpointReader) -> str:
    if reader.kind == "gguf":
        return str(reader.metadata.get("general.architecture", ""))
    classes = reader.config.get("architectures")
    if isinstance(classes, list) and classes:
        return ", ".join(map(str, classes))
    return str(reader.config.get("model_type", ""))


def _tokenizer(reader: CheckpointReader, folder: Path) -> str:
    if reader.kind == "gguf":
        model = reader.metadata.get("tokenizer.ggml.model")
        if model is None:
            return ""
        names = {"gpt2": "byte-level BPE", "llama": "SentencePiece"}
        pre = reader.metadata.get("tokenizer.ggml.pre")
        tail = f", pre-tokenizer {pre}" if pre else ""
        return f"{names.get(str(model), str(model))} inside the GGUF{tail}"
    for file_name, words in (
        ("tokenizer.json", "tokenizer.json"),
        ("tokenizer.model", "SentencePiece tokenizer.model"),
    ):
        if (folder / file_name).is_file():
            return words
    return ""


def _file_bytes(path: Path) -> int:
    files = find_weights(path).files if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _tensor_rows(
    reader: CheckpointReader, quant: QuantSpec | None
) -> tuple[tuple[TensorRow, ...], tuple[tuple[int, int], ...]]:
    """Every tensor, and the shapes of the quantized ones."""
    tensors = reader.tensors
    sizes = {name: _num_bytes(info) for name, info in tensors.items()}
    mains, parts = _quantized_modules(tensors)
    shapes: dict[tuple[int, int], None] = {}
    rows = []
    for name, info in tensors.items():
        weights, size = math.prod(info.shape), sizes[name]
        if name in parts:
            weights = 0
        elif name in mains:
            shape = _weight_shape(reader, name, quant)
            weights = math.prod(shape) if shape else 0
            size += sum(sizes[part] for part in mains[name])
            if shape:
                shapes[shape] = None
        bits = 8 * size / weights if weights else None
        rows.append(TensorRow(name, info.dtype, info.shape, sizes[name], weights, bits))
    return tuple(rows), tuple(shapes)


def _is_packed(name: str, dtype: str) -> bool:
    """Whether a stored tensor holds the codes of a quantized module."""
    suffix = name.rpartition(".")[2]
    return suffix in _QUANTIZED_PARTS and (suffix != "weight" or dtype == "I8")


def _quantized_modules(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, list[str]], set[str]]:
    """Main tensor of each quantized module -> its parts, and the set of all parts."""
    mains: dict[str, list[str]] = {}
    for name, info in tensors.items():
        module, _, suffix = name.rpartition(".")
        if not _is_packed(name, info.dtype):
            continue
        around = (f"{module}.{part}" for part in _QUANTIZED_PARTS[suffix])
        mains[name] = [part for part in around if part in tensors]
    return mains, {part for found in mains.values() for part in found}


def _weight_shape(
    reader: CheckpointReader, name: str, quant: QuantSpec | None
) -> tuple[int, int] | None:
    """(N, K) of a quantized module; None where the config does not say how it is packed."""
    module, _, suffix = name.rpartition(".")
    stored = reader.tensors[name].shape
    if len(stored) != 2:
        return None
    if suffix == "weight":
        return (stored[0], stored[1])
    fmt = quant.format_of(module) if quant else None
    if fmt is None:
        return None
    if suffix == "qweight":
        index = reader.tensors.get(f"{module}.g_idx")
        return (stored[1], index.shape[0] if index and index.shape else stored[0] * 32 // fmt.bits)
    if f"{module}.weight_shape" in reader.tensors:
        said = [int(i) for i in reader.read(f"{module}.weight_shape").reshape(-1)]
        # Checked against the packed words: the numbers are a file's claim.
        if len(said) == 2 and said[0] == stored[0] and -(-said[1] * fmt.bits // 32) == stored[1]:
            return (said[0], said[1])
        raise CheckpointError(
            f"{reader.path}: {module}.weight_shape says {said} but weight_packed has "
            f"{list(stored)} words of {fmt.bits}-bit codes; download it again"
        )
    return (stored[0], stored[1] * 32 // fmt.bits)


def _num_bytes(info: TensorInfo) -> int:
    if not info.dtype.startswith("GGUF:"):
        return tensor_bytes(info.dtype, info.shape)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[info.dtype.removeprefix("GGUF:")]]
    return math.prod(info.shape) // int(block) * int(block_bytes)


def _gguf_types(rows: tuple[TensorRow, ...]) -> str:
    """Types by the share of weights that they hold, largest first."""
    held: dict[str, int] = {}
    for row in rows:
        held[row.dtype] = held.get(row.dtype, 0) + row.num_weights
    total = sum(held.values()) or 1
    ordered = sorted(held.items(), key=lambda item: -item[1])
    shares = [(name.removeprefix("GGUF:"), f"{n / total:.1%}") for name, n in ordered]
    return ", ".join(f"{name} {share}" for name, share in shares if share != "0.0%")
