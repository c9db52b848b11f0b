"""One ONNX export: plan, validate everything, then write a folder that is complete or not there."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bcquant
from bcquant.io.atomic import atomic_write_bytes, atomic_write_json, check_writable
from bcquant.io.atomic_folder import atomic_folder
from bcquant.io.digest import sha256_bytes
from bcquant.models.source import ModelSource
from bcquant.runtime.tokenizer import has_tokenizer
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.export_plan import ExportPlan, Progress

from .options import OnnxOptions
from .plan import FACTS_FILE, Built, make_plan, measured
from .writer import MODEL_FILE, write_data

# Target -> module with `extra_files` and `notes`, for those that need files beside model.onnx.
TARGET_MODULES = {"genai": "genai", "web": "web"}
FACTS_VERSION = 1


class OnnxJob:
    """An `ExportJob`: the export of one open checkpoint.

    Attributes:
        source: not closed here.
        options: flags.
    """

    def __init__(self, source: ModelSource, options: OnnxOptions) -> None:
        self.source, self.options = source, options
        self._made: tuple[ExportPlan, Built | None] | None = None

    def plan(self) -> ExportPlan:
        """From headers alone; nothing is read.

        Raises:
            ConfigError: the onnx package is missing.
        """
        return self._make()[0]

    def validate(self, progress: Progress) -> ExportPlan:
        """Read every tensor that could fail or change; the plan with its errors measured.

        Raises:
            ExportError: a value that the format cannot hold, or a tokenizer without equivalent.
            CheckpointError: a tensor or the tokenizer cannot be read.
        """
        plan, built = self._make()
        if built is None or plan.refusals:
            return plan
        with tempfile.TemporaryDirectory() as folder:
            self._write_small_files(Path(folder), built)
        target = self._target()
        if target is not None:
            notes = target.notes(self.source, self.options)
            plan = replace(plan, notes=(*plan.notes, *notes))
        return measured(plan, self.source, self.options, progress)

    def write(self, out: Path, progress: Progress) -> tuple[Path, ...]:
        """Write the folder and return it; only after `validate`.

        Raises:
            ExportError: `out` exists or cannot be written. Nothing half-written remains.
            CheckpointError: the checkpoint cannot be read any more.
        """
        plan, built = self._make()
        assert built is not None and not plan.refusals, "write after a refusal"
        check_writable(out.parent, plan.num_bytes)
        with atomic_folder(out) as folder:
            self._write_small_files(folder, built)
            write_data(folder, built.graph.weights.values(), built.layout, progress)
            atomic_write_bytes(folder / MODEL_FILE, built.model)
        return (out,)

    def _make(self) -> tuple[ExportPlan, Built | None]:
        if self._made is None:
            self._made = make_plan(self.source, self.options)
        return self._made

    def _write_small_files(self, folder: Path, built: Built) -> None:
        """Tokenizer, facts, and what the target needs, which may replace either."""
        if has_tokenizer(self.source):
            export_tokenizer(self.source.path, folder)
        atomic_write_json(folder / FACTS_FILE, facts(self.source, self.options))
        target = self._target()
        if target is None:
            return
        extra = target.extra_files(self.source, self.options, tuple(built.layout.sizes))
        for name, content in extra.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            atomic_write_bytes(folder / name, data)

    def _target(self) -> Any:
        name = TARGET_MODULES.get(self.options.target)
        return importlib.import_module(f".{name}", __package__) if name else None


def facts(source: ModelSource, options: OnnxOptions) -> dict[str, Any]:
    """What bcquant_export.json says: who wrote the folder, of what, how, and each module's format.

    The source is known by its name, its config's digest and its tensors' names and shapes; its
    path is left out, so the same checkpoint gives the same bytes anywhere.
    """
    tensors = "\n".join(
        f"{name} {source.stored_dtype(name)} {list(source.shape(name))}" for name in source.names()
    )
    formats = {
        name.removesuffix(".weight"): source.format_of(name.removesuffix(".weight"))
        for name in source.names()
        if source.stored_dtype(name) == "quantized"
    }
    return {
        "exporter": "onnx",
        "version": FACTS_VERSION,
        "bcquant": bcquant.__version__,
        "source": {
            "name": source.path.name,
            "kind": source.reader.kind,
            "family": source.config.family,
            "tensors_sha256": sha256_bytes(tensors.encode()),
        },
        "options": asdict(options),
        "modules": {name: asdict(fmt) for name, fmt in formats.items() if fmt is not None},
    }
