"""Opens what lies at a path, reads its headers and closes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bcquant.errors import BcquantError
from bcquant.io.checkpoint import CheckpointReader, open_checkpoint
from bcquant.io.folder import find_weights
from bcquant.io.json_file import read_json_object
from bcquant.loaders._facts import Facts
from bcquant.loaders._tensor_rows import tensor_rows
from bcquant.quant.quant_configs import QuantSpec, parse_quant_config
from bcquant.quant.repack import check_sequential
from bcquant.spec.model_config import ModelConfig

_COLUMN_INDEXES = ("g_idx", "weight_g_idx")


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
        rows, linears = tensor_rows(reader, quant)
        config, open_problem = _open(reader.path)
        open_problem = open_problem or _act_order_problem(reader, quant)
        return Facts(
            path=reader.path,
            kind=reader.kind,
            architecture=_architecture(reader),
            family=family,
            quant=quant,
            in_main_config="quantization_config" in reader.config,
            rows=rows,
            linears=linears,
            config=config,
            tokenizer=_tokenizer(reader, folder),
            file_bytes=_file_bytes(reader.path),
            problem=problem or family_problem or open_problem,
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


def _open(path: Path) -> tuple[ModelConfig | None, str | None]:
    """The model's config, or why bcquant cannot use it."""
    from bcquant.models.source import open_model

    try:
        with open_model(path) as source:
            return source.config, None
    except BcquantError as error:
        return None, str(error)


def _act_order_problem(reader: CheckpointReader, quant: QuantSpec | None) -> str | None:
    """Why a module's columns cannot be read; their indexes are all that is read of the data."""
    for name in reader.tensors if quant else ():
        module, _, suffix = name.rpartition(".")
        fmt = quant.format_of(module) if quant and suffix in _COLUMN_INDEXES else None
        if fmt is None:
            continue
        try:
            index = np.asarray(reader.read(name)).reshape(-1)
            check_sequential(index, index.size, fmt.group_width(index.size))
        except BcquantError as error:
            return f"{module}: {error}"
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
