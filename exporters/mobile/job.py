"""One export to a package: plan, validate everything, then write section by section."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bcquant.errors import ConfigError, ExportError
from bcquant.io.atomic import check_writable
from bcquant.io.package import shard_names
from bcquant.io.package_index import MAX_SHARDS, ModelBlock
from bcquant.io.package_signature import SIGNATURE_FILE_BYTES, SIGNATURE_SUFFIX
from bcquant.models.source import ModelSource
from bcquant.runtime.native_weights import is_w8a8, modules, refusal
from bcquant.runtime.text_codec import SpecialTokens
from bcquant.spec.export_plan import ExportPlan, Progress, TensorPlan

from .options import MobileOptions
from .sections import PlannedSection, planned_sections
from .signing import read_key
from .tensors import first_plan, measured
from .text_sections import Texts, read_texts
from .writer import MB, Layout, lay_out, too_large, write_package

_PLAN_NAME = "model.bcq"


class MobileJob:
    """See `ExportJob`: plan, validate, write.

    Raises:
        ConfigError: a longer context is asked for than the model has, or the key that signs
            cannot be used.
    """

    def __init__(self, source: ModelSource, options: MobileOptions) -> None:
        self._source, self._options = source, options
        own = source.config.max_positions
        if options.context is not None and options.context > own:
            raise ConfigError(
                f"--context is {options.context}; the model was made for {own} tokens at most"
            )
        self._key = None if options.sign is None else read_key(options.sign)
        self._tensors: tuple[TensorPlan, ...] | None = None
        self._texts: Texts | None = None

    def plan(self) -> ExportPlan:
        """Sizes are exact once `validate` has read the tokenizer; before, without texts."""
        reason = refusal(self._source)
        if reason is not None:
            return ExportPlan("mobile", (), (), (reason,))
        tensors = self._tensors or tuple(
            first_plan(self._source, name) for name in self._source.names()
        )
        model, dropped = self._model()
        sections = self._sections()
        layout = self._layout(sections)
        sizes = layout.file_bytes
        problems = [model.problem(), self._split_problem(sections, layout)]
        return ExportPlan(
            exporter="mobile",
            files=self._files(sizes),
            tensors=tensors,
            refusals=tuple(problem for problem in problems if problem is not None),
            notes=(*dropped, *(self._texts.notes if self._texts else ())),
        )

    def validate(self, progress: Progress) -> ExportPlan:
        """Build the tokenizer's section, read every tensor, measure what changes.

        Raises:
            ExportError: the tokenizer has no place in the format, or a value does not fit.
            CheckpointError, ConfigError: the checkpoint, its tokenizer or the certificate cannot
                be read.
        """
        plan = self.plan()
        if plan.refusals:
            return plan
        names = self._source.names()
        self._texts = read_texts(self._source, self._options)
        progress("the texts", 1, len(names) + 1)
        tensors = []
        for done, name in enumerate(names, 2):
            tensors.append(measured(self._source, name))
            progress(name, done, len(names) + 1)
        self._tensors = tuple(tensors)
        return self.plan()

    def write(self, out: Path, progress: Progress) -> tuple[Path, ...]:
        """Write the file or the shards under temporary names, rename and return them.

        Raises:
            ExportError: a file exists, has too little space, or cannot be written.
            CheckpointError: the checkpoint cannot be read any more.
        """
        if self._texts is None:
            raise ExportError("a package is written after it was validated")
        sections = self._sections()
        layout = self._layout(sections)
        check_writable(out.parent, sum(layout.file_bytes))
        return write_package(out, self._model()[0], sections, layout, progress, self._key)

    def _files(self, sizes: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
        """Name and bytes of everything that is written."""
        names = shard_names(_PLAN_NAME, len(sizes))
        files = tuple(zip(names, sizes, strict=True))
        if self._key is None:
            return files
        return (*files, (names[0] + SIGNATURE_SUFFIX, SIGNATURE_FILE_BYTES))

    def _sections(self) -> list[PlannedSection]:
        texts = self._texts.sections if self._texts else {}
        return planned_sections(self._source, texts)

    def _layout(self, sections: list[PlannedSection]) -> Layout:
        split_mb = self._options.split_mb
        return lay_out(sections, None if split_mb is None else split_mb * MB)

    def _split_problem(self, sections: list[PlannedSection], layout: Layout) -> str | None:
        split_mb = self._options.split_mb
        if split_mb is None:
            return None
        count = len(layout.file_bytes)
        if count > MAX_SHARDS:
            return f"--split-mb {split_mb} makes {count} files; {MAX_SHARDS} is the limit"
        return too_large(sections, split_mb)

    def _model(self) -> tuple[ModelBlock, tuple[str, ...]]:
        """The model block, and a note on every token id that names nothing and is left out."""
        cfg = self._source.config
        special = SpecialTokens(cfg.bos_id, cfg.eos_ids, cfg.pad_id)
        if self._texts is not None and self._texts.special is not None:
            special = self._texts.special
        ids: dict[str, list[int | None]] = {
            "begin": [special.bos_id],
            "padding": [special.pad_id],
            "end": [*special.eos_ids],
        }
        kept = {
            key: [i for i in found if i is not None and 0 <= i < cfg.vocab_size]
            for key, found in ids.items()
        }
        notes = tuple(
            f"the {key} token {i} is not in the vocabulary of {cfg.vocab_size}, so it is left out"
            for key, found in ids.items()
            for i in found
            if i is not None and i not in kept[key]
        )
        model = ModelBlock(
            vocab_size=cfg.vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.num_kv_heads,
            head_dim=cfg.head_dim,
            max_positions=self._options.context or cfg.max_positions,
            rms_norm_eps=float(np.float32(cfg.rms_norm_eps)),
            is_alibi=cfg.position == "alibi",
            ties_head=cfg.tie_embeddings,
            activations=_activations(self._source),
            bos_id=next(iter(kept["begin"]), None),
            pad_id=next(iter(kept["padding"]), None),
            eos_ids=tuple(kept["end"]),
        )
        return model, notes


def _activations(source: ModelSource) -> int:
    """2 for W8A8, 1 if anything is quantized, 0 for floats."""
    if is_w8a8(source):
        return 2
    return 1 if any(source.format_of(module) for module in modules(source)) else 0
