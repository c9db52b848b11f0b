"""Every program's answer about one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bcquant import registry
from bcquant.loaders._collect import collect_facts
from bcquant.loaders._facts import Facts
from bcquant.loaders._onnx import collect_onnx_facts, find_onnx
from bcquant.loaders._verdict import Export, Loader, Outlook, Subject, Verdict

PACKAGE = "bcquant.loaders"
# What `bcquant inspect` shows: programs that read checkpoints.
CHECKPOINT_LOADERS = ("bcquant", "transformers", "compressed_tensors", "vllm", "llama_cpp")


@dataclass(frozen=True)
class Answer:
    """One program on one model.

    Attributes:
        as_it_is: the verdict on the files as they lie.
        exported: the verdict on what `command` would write; None where nothing is to be exported.
        command: the export that `exported` is about; "" where it would not load either.
    """

    as_it_is: Verdict
    exported: Verdict | None = None
    command: str = ""


def loaders(keys: Sequence[str] | None = None) -> list[Loader]:
    """Programs by key, in the order given; all of them, sorted by key, if none is given."""
    found = registry.names(PACKAGE) if keys is None else keys
    return [registry.load(PACKAGE, key, "LOADER") for key in found]


def describe(path_or_hub_id: str) -> Subject:
    """Facts of a checkpoint, a GGUF file or an ONNX model.

    Raises:
        CheckpointError: it cannot be opened as any of them.
        ConfigError: a package that reads it is not installed.
    """
    file = find_onnx(Path(path_or_hub_id))
    return collect_facts(path_or_hub_id) if file is None else collect_onnx_facts(file)


def checked_with(keys: Sequence[str]) -> str:
    """Versions whose rules were read or tested, as one line."""
    versions = [v for loader in loaders(keys) for v in loader.checked_with.split(", ")]
    return ", ".join(dict.fromkeys(versions))


def answer(loader: Loader, subject: Subject, outlook: Callable[[Export], Outlook]) -> Answer:
    """One program's answer.

    Args:
        outlook: what an exporter says about the checkpoint; asked only where it matters.
    """
    verdict = loader.judge(subject)
    export, judge_export = loader.export, loader.judge_export
    if verdict.loads == "yes" or export is None or judge_export is None:
        return Answer(verdict)
    if not isinstance(subject, Facts) or subject.problem is not None:
        return Answer(verdict)
    said = outlook(export)
    if said.refusals:
        refused = "; ".join(said.refusals)
        return Answer(verdict, Verdict(loader.name, "no", f"cannot be exported: {refused}"))
    flags = ("--allow-lossy",) if said.changes_weights else ()
    exported = judge_export(subject)
    command = Export(export.exporter, export.flags + flags).command(str(subject.path))
    return Answer(verdict, exported, "" if exported.loads == "no" else command)
