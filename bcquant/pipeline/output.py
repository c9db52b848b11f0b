"""From sealed modules to a checkpoint folder that other programs load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bcquant.errors import ConfigError, ExportError
from bcquant.io.atomic import sync_folder
from bcquant.io.checkpoint import f32_to_bf16
from bcquant.io.writer import RawTensor, TensorSpec, atomic_write_json, write_sharded
from bcquant.models.architecture import (
    EMBEDDING,
    HEAD,
    STAGES,
    canonical_tensors,
    quantizable_modules,
)
from bcquant.models.source import ModelSource
from bcquant.pipeline.output_config import output_config, quantization_config
from bcquant.pipeline.sealed import FoldedModel
from bcquant.quant import repack
from bcquant.quant.stored_shapes import stored_shapes
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.recipe import Recipe

TORCH_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
CONFIG_NAMES = {"F16": "float16", "BF16": "bfloat16"}
F16_OVERFLOW = 65520.0  # the first value that rounds to infinity
QKV = STAGES[0]
Stored = npt.NDArray[Any] | RawTensor


@dataclass(frozen=True)
class Layout:
    """How a recipe's output stores tensors.

    Attributes:
        float_dtype: "F16" or "BF16", of everything that is not quantized.
        keeps_names: the source's names and fused modules (Baichuan's W_pack) are kept.
    """

    float_dtype: str
    keeps_names: bool

    @property
    def torch_dtype(self) -> torch.dtype:
        """float_dtype for torch."""
        return TORCH_DTYPES[self.float_dtype]


def quantized_modules(source: ModelSource, recipe: Recipe) -> list[str]:
    """Full names of the modules that a run quantizes, in the order of the run."""
    cfg = source.config
    modules = [m for layer in range(cfg.num_layers) for m in quantizable_modules(cfg, layer)]
    return modules + (["lm_head"] if recipe.lm_head else [])


def module_shapes(source: ModelSource) -> dict[str, tuple[int, int]]:
    """(N, K) of every Linear by full name; lm_head too where it is tied to the embedding."""
    shapes = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in canonical_tensors(source.config)
        if len(shape) == 2
    }
    return {"lm_head": shapes[EMBEDDING.removesuffix(".weight")], **shapes}


def default_group_size(source: ModelSource) -> int:
    """The largest of 128, 64 and 32 that divides every row: what all readers take.

    Raises:
        ConfigError: none does.
    """
    widths = {k for module, (_, k) in module_shapes(source).items() if module != "lm_head"}
    for size in (128, 64, 32):
        if all(k % size == 0 for k in widths):
            return size
    raise ConfigError(
        f"{source.path}: rows of {sorted(widths)} columns; no usual group size divides them, "
        "give --group-size (-1 for the whole row)"
    )


def choose_layout(source: ModelSource, recipe: Recipe) -> Layout:
    """Layout of the output; every module is checked before anything is computed.

    Raises:
        ExportError: the output format cannot hold a module; the message says which and why.
        ConfigError: the source is quantized already, or --keep-arch is given for a family that
            needs no conversion.
    """
    if source.quant is not None:
        raise ConfigError(
            f"{source.path}: is quantized already ({source.quant.method}); rounding it again would "
            "only add error, give the float checkpoint that it was made from"
        )
    shapes = module_shapes(source)
    _check_overrides(source, recipe)
    for module in quantized_modules(source, recipe):
        n, k = shapes[module]
        reasons = repack.requirements(recipe.format_of(module), n, k, recipe.output)
        if reasons:
            raise ExportError(
                f"{module} ({n} x {k}) cannot be written as {recipe.output}: {'; '.join(reasons)}"
            )
    is_baichuan = source.arch.key == "baichuan"
    if recipe.keep_arch and not is_baichuan:
        raise ConfigError(
            f"--keep-arch: {source.arch.key} keeps its names anyway; leave the flag out"
        )
    dtypes = {source.stored_dtype(name) for name in source.names()}
    return Layout(
        "BF16" if "BF16" in dtypes else "F16",
        is_baichuan and (recipe.keep_arch or source.config.position == "alibi"),
    )


def _check_overrides(source: ModelSource, recipe: Recipe) -> None:
    """Modules that read one input are fused by servers and kernels: they share a format.

    Raises:
        ConfigError: they do not, a name is no module of the model, or activations differ.
    """
    left = dict(recipe.overrides)
    known = quantized_modules(source, recipe)
    for name, fmt in left.items():
        if name not in known:
            raise ConfigError(f"{name}: a format is given for it, but the model has no such module")
        if fmt.activation != recipe.format.activation:
            raise ConfigError(f"{name}: its activations differ from those of the other modules")
    for layer in range(source.config.num_layers):
        for stage in STAGES:
            names = [f"model.layers.{layer}.{short}" for short in stage]
            if len({recipe.format_of(name) for name in names}) > 1:
                raise ConfigError(
                    f"{', '.join(names)}: read the same input and need the same format"
                )


def check_floats(source: ModelSource, recipe: Recipe, layout: Layout) -> None:
    """Refuse what float16 cannot hold before a run and not at its end.

    Raises:
        ExportError: a tensor that is stored as float16 has such a value; the message names it.
    """
    if layout.float_dtype != "F16":
        return
    quantized = set(quantized_modules(source, recipe))
    for name in source.names():
        if name.removesuffix(".weight") in quantized or source.stored_dtype(name) == "F16":
            continue
        values = source.weight(name)
        largest = max(-float(values.min()), float(values.max()))
        if not np.isfinite(largest):
            raise ExportError(
                f"{name}: holds values that are not finite; the checkpoint is damaged"
            )
        if largest >= F16_OVERFLOW:
            raise ExportError(
                f"{name}: reaches {largest:.4g} but float16 ends at 65504; "
                "convert the model to bfloat16 first"
            )


def write_output(
    folder: Path,
    source: ModelSource,
    recipe: Recipe,
    layout: Layout,
    sealed: FoldedModel,
    documents: Mapping[str, Any],
    copy_tokenizer: Callable[[Path], object],
) -> None:
    """Write the whole checkpoint beside `folder`, then give it that name in one rename.

    Args:
        sealed: canonical weights of the modules, and what else changes with them.
        documents: file name -> JSON value (manifest, report).
        copy_tokenizer: writes tokenizer files into the folder it is given.
    Raises:
        ExportError: `folder` exists, or a write fails; nothing is left under its name.
    """
    if folder.exists():
        raise ExportError(f"{folder}: exists; remove it or choose another output with -o")
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        plan = _Plan(source, recipe, layout, sealed)
        metadata = {"format": "pt"}
        write_sharded(unfinished, plan.specs, plan.fetch, recipe.max_shard_bytes, metadata)
        quantization = quantization_config(recipe, layout.keeps_names)
        config = output_config(source, layout.keeps_names, CONFIG_NAMES[layout.float_dtype])
        if recipe.lm_head:
            config["tie_word_embeddings"] = False
        config["quantization_config"] = quantization
        atomic_write_json(unfinished / "config.json", config)
        if recipe.output != "compressed-tensors":
            atomic_write_json(unfinished / "quantize_config.json", quantization)
        copy_tokenizer(unfinished)
        for name, value in documents.items():
            atomic_write_json(unfinished / name, value)
        sync_folder(unfinished)
        os.rename(unfinished, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise ExportError(
            f"{error.filename or unfinished}: writing failed ({error.strerror}); "
            "free space or choose another output with -o, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Plan:
    """Every tensor of the output in file order, and how each is made."""

    def __init__(
        self,
        source: ModelSource,
        recipe: Recipe,
        layout: Layout,
        sealed: FoldedModel,
    ) -> None:
        self.source, self.recipe, self.layout, self.sealed = source, recipe, layout, sealed
        self.specs: list[TensorSpec] = []
        self._makers: dict[str, Callable[[], Stored]] = {}
        self._cache: tuple[str, dict[str, Stored]] = ("", {})
        shapes = module_shapes(source)
        quantized = set(quantized_modules(source, recipe))
        names = [name for name, _ in canonical_tensors(source.config)]
        if recipe.lm_head and HEAD not in names:
            names.append(HEAD)
        for name in names:
            module = name.removesuffix(".weight")
            parent, _, leaf = module.rpartition(".")
            short = f"self_attn.{leaf}"
            if module not in quantized:
                self._add_float(name)
            elif not (layout.keeps_names and short in QKV):
                self._add_module(module, [module], shapes)
            elif short == QKV[0]:
                parts = [f"{parent}.{m.removeprefix('self_attn.')}" for m in QKV]
                self._add_module(f"{parent}.W_pack", parts, shapes)

    def fetch(self, name: str) -> Stored:
        """The data of one tensor."""
        return self._makers[name]()

    def _add_float(self, name: str) -> None:
        shape = self.source.shape(name)
        self.specs.append(TensorSpec(name, self.layout.float_dtype, shape))
        self._makers[name] = lambda: self._float(name)

    def _add_module(
        self, module: str, parts: list[str], shapes: dict[str, tuple[int, int]]
    ) -> None:
        n, k = sum(shapes[p][0] for p in parts), shapes[parts[0]][1]
        stored = stored_shapes(self.recipe.format_of(parts[0]), n, k, self.recipe.output)
        for suffix, (dtype, shape) in stored.items():
            name = f"{module}.{suffix}"
            self.specs.append(TensorSpec(name, dtype, shape))
            self._makers[name] = partial(self._stored, module, parts, suffix)

    def _float(self, name: str) -> Stored:
        wanted = self.layout.float_dtype
        values = self.sealed.changed_float(name)
        if values is None and self.source.stored_dtype(name) == wanted:
            return self.source.raw(name)
        if values is None:
            values = self.source.weight(name)
        if wanted == "BF16":
            return RawTensor("BF16", values.shape, f32_to_bf16(values))
        return values.astype(np.float16)

    def _stored(self, module: str, parts: list[str], suffix: str) -> Stored:
        if self._cache[0] != module:
            self._cache = (
                module,
                dict(self._repacked(_stack([self.sealed.tensor(p) for p in parts]))),
            )
        return self._cache[1][suffix]

    def _repacked(self, q: QuantizedTensor) -> Mapping[str, Stored]:
        if self.recipe.output == "compressed-tensors":
            return (
                repack.to_int8(q)
                if q.format.activation == "int8_token"
                else repack.to_compressed(q)
            )
        return repack.to_gptq(q, "v2" if self.recipe.output == "gptq_v2" else "v1")


def _stack(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """Modules that read the same input as one, rows in the given order."""
    if len(parts) == 1:
        return parts[0]
    return QuantizedTensor(
        np.concatenate([p.codes_NK for p in parts]),
        np.concatenate([p.scales_NG for p in parts]),
        np.concatenate([p.zeros_NG for p in parts]),
        parts[0].format,
    )
