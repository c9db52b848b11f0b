"""What an exporter will write and what it will change, known before a byte is written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of an export.

    Attributes:
        name: canonical, e.g. "model.layers.0.self_attn.q_proj".
        stored_as: how the export holds it, e.g. "MatMulNBits 4-bit, blocks of 64" or "Q4_0".
        num_bytes: of its data in the export.
        error: relative error that storing it so adds, |stored - source| / |source| over the whole
            tensor (Frobenius norms); 0.0 = its values are carried over exactly; None = inexact,
            not measured yet (`ExportJob.validate` measures it).
    """

    name: str
    stored_as: str
    num_bytes: int
    error: float | None = 0.0


@dataclass(frozen=True)
class ExportPlan:
    """The whole export.

    Attributes:
        exporter: its key.
        files: (name, bytes) of what will be written; sizes of small text files are 0.
        tensors: in model order.
        refusals: why it cannot be written, one sentence each; empty = it can.
        notes: what a user should know, one sentence each.
    """

    exporter: str
    files: tuple[tuple[str, int], ...]
    tensors: tuple[TensorPlan, ...]
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def lossy(self) -> tuple[TensorPlan, ...]:
        """Tensors whose values change."""
        return tuple(t for t in self.tensors if t.error is None or t.error > 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "num_bytes": self.num_bytes}


class ExportJob(Protocol):
    """One export of one open checkpoint: plan, validate everything, then write."""

    def plan(self) -> ExportPlan:
        """From headers alone; nothing is read."""

    def validate(self, progress: Progress) -> ExportPlan:
        """Read every tensor that could fail or change; the plan with its errors measured.

        Raises:
            ExportError: a value that the format cannot hold, with the tensor's name.
            CheckpointError: a tensor cannot be read.
        """

    def write(self, out: Path, progress: Progress) -> tuple[Path, ...]:
        """Write under a temporary name and rename; only after `validate`. What there is then.

        Raises:
            ExportError: `out` exists or cannot be written. Nothing half-written remains.
        """


@dataclass(frozen=True)
class Exporter:
    """One kind of export: a module of `exporters/` exports it as EXPORTER; its name is the key.

    Attributes:
        add_arguments: declares its flags.
        options: parsed flags -> the exporter's own options value; ConfigError for a wrong one.
        default_out: source path -> where to write if nothing was said.
        prepare: (open ModelSource, options) -> a job.
        examples: command lines, one a line.
        is_verifiable: `bcquant verify` reads what it writes.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    options: Callable[[argparse.Namespace], Any]
    default_out: Callable[[Path], Path]
    prepare: Callable[[Any, Any], ExportJob]
    examples: str = ""
    is_verifiable: bool = True
