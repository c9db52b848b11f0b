"""One export to GGUF: choose, measure, then write tensor by tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from bcquant.errors import ConfigError, ExportError
from bcquant.io.atomic import check_writable
from bcquant.io.atomic_folder import refuse_existing
from bcquant.models.gguf_config import ROPE_FACTORS
from bcquant.models.source import ModelSource
from bcquant.quant.gguf_blocks import KINDS
from bcquant.spec.export_plan import ExportPlan, Progress, TensorPlan
from bcquant.spec.model_config import ModelConfig

from .architecture import find_target, model_metadata, rope_divisors
from .file import Metadata, Tensor, file_size, write_file
from .options import GgufOptions
from .sampling import sampling_metadata
from .storage import FLOAT_TYPES, Choice, Storage
from .tokens import Vocabulary, build_vocabulary

# llama.cpp's `general.file_type` by the type that most weights have.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K": 14, "BF16": 32,
}  # fmt: skip


class GgufJob:
    """See `ExportJob`: plan, validate, write.

    Raises:
        ConfigError: a longer context is asked for than the model has.
    """

    def __init__(self, source: ModelSource, options: GgufOptions) -> None:
        self._source, self._options = source, options
        self._config = _with_context(source.config, options.context)
        self._target = find_target(self._config)
        self._storage = Storage(source, options, self._target.is_permuted)
        self._choices = [self._storage.first_choice(name) for name in source.names()]
        self._vocabulary: Vocabulary | None = None

    def plan(self) -> ExportPlan:
        """Sizes are exact once `validate` has read the tokenizer; before, without it."""
        tensors = self._tensors()
        metadata = self._metadata()
        return ExportPlan(
            exporter="gguf",
            files=(("model.gguf", file_size(metadata, tensors)),),
            tensors=tuple(self._tensor_plan(choice) for choice in self._choices),
            refusals=(*self._target.refusals, *self._other_ids(is_allowed=False)),
            notes=self._notes(),
        )

    def validate(self, progress: Progress) -> ExportPlan:
        """Build and prove the tokenizer, read every quantized tensor, measure what changes.

        Raises:
            ExportError: the tokenizer has no equal, or a value does not fit.
            CheckpointError, ConfigError: the checkpoint or its tokenizer cannot be read.
        """
        total = len(self._choices) + 1
        self._vocabulary = build_vocabulary(self._source)
        progress("the tokenizer", 1, total)
        for position, choice in enumerate(self._choices):
            self._choices[position] = self._storage.measured(choice)
            progress(choice.name, position + 2, total)
        return self.plan()

    def write(self, out: Path, progress: Progress) -> tuple[Path, ...]:
        """Write one file under a temporary name, rename it and return it.

        Raises:
            ExportError: `out` exists, has too little space, or cannot be written.
        """
        if self._vocabulary is None:
            raise ExportError("a GGUF export is written after it was validated")
        refuse_existing(out)
        metadata, tensors = self._metadata(), self._tensors()
        check_writable(out.parent, file_size(metadata, tensors))
        names = [tensor.name for tensor in tensors]
        write_file(
            out, metadata, tensors, lambda done: progress(names[done - 1], done, len(tensors))
        )
        return (out,)

    def _metadata(self) -> Metadata:
        name = self._source.path.stem if self._source.path.is_file() else self._source.path.name
        found = model_metadata(self._config, self._target, name, self._file_type())
        found |= sampling_metadata(self._source)
        return {**found, **(self._vocabulary.metadata if self._vocabulary else {})}

    def _tensors(self) -> list[Tensor]:
        tensors = [self._storage.tensor(choice) for choice in self._choices]
        divisors = rope_divisors(self._source.config)
        if divisors is not None:
            made = (np.asarray(divisors, "<f4"),)
            tensors.append(
                Tensor(
                    ROPE_FACTORS, FLOAT_TYPES["F32"], divisors.shape, divisors.nbytes, lambda: made
                )
            )
        return tensors

    def _file_type(self) -> int:
        """By the type of most weights of the blocks; a GGUF source keeps its own number."""
        own = self._source.reader.metadata.get("general.file_type")
        if isinstance(own, int):
            return own
        sizes: Counter[str] = Counter()
        for choice in self._choices:
            shape = self._source.shape(choice.name)
            if ".layers." in choice.name and len(shape) == 2:
                sizes[self._storage.stored_as(choice)] += shape[0] * shape[1]
        return _FILE_TYPES.get(sizes.most_common(1)[0][0], _FILE_TYPES["F16"])

    def _tensor_plan(self, choice: Choice) -> TensorPlan:
        name = choice.name.removesuffix(".weight") if choice.is_quantized else choice.name
        size = self._storage.tensor(choice).num_bytes
        return TensorPlan(name, self._storage.stored_as(choice), size, choice.error)

    def _other_ids(self, is_allowed: bool) -> tuple[str, ...]:
        """What to say of ids that differ, if --allow-lossy was given or not as asked."""
        stuck = self._vocabulary.stuck if self._vocabulary else ()
        if not stuck or self._options.allow_other_ids != is_allowed:
            return ()
        sentence = (
            f"llama.cpp puts a space after {len(stuck)} tokens, {stuck[0]!r} among them, where its "
            "tokenizer puts none: ids after one differ"
        )
        return (sentence if is_allowed else f"{sentence}; --allow-lossy writes it all the same",)

    def _notes(self) -> tuple[str, ...]:
        notes = [*(self._vocabulary.notes if self._vocabulary else ()), *self._other_ids(True)]
        if any(choice.kind in KINDS for choice in self._choices):
            notes.append(
                "llama.cpp rounds activations to 8 bits in blocks before it multiplies them with "
                "block types: its logits differ by that much, whatever the weights"
            )
        unfit = [c for c in self._choices if c.is_quantized and c.kind in FLOAT_TYPES]
        if unfit:
            notes.append(
                f"{len(unfit)} quantized weights are stored as {unfit[0].kind}, because no block "
                "type holds their groups; --unfit-as f32 is exact"
            )
        return tuple(notes)


def _with_context(cfg: ModelConfig, context: int | None) -> ModelConfig:
    if context is None:
        return cfg
    if context > cfg.max_positions:
        raise ConfigError(
            f"--context is {context}; the model was made for {cfg.max_positions} tokens at most"
        )
    return replace(cfg, max_positions=context)
