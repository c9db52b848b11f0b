"""Bits for every fused set of modules such that a size is kept at the least predicted divergence.

QUANT.md section 3 (J). Servers and kernels fuse the modules that read one input, so these share
their bits. Group size and symmetry are the same everywhere.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.sensitivity import SetCost
from bcquant.errors import ConfigError, ExportError
from bcquant.io.writer import TensorSpec
from bcquant.models.architecture import STAGES, canonical_tensors
from bcquant.models.source import ModelSource
from bcquant.pipeline.allocate_measure import Progress, measure_sets
from bcquant.pipeline.calibration import tokens_for
from bcquant.pipeline.knapsack import cheapest_choices
from bcquant.pipeline.output import check_floats, choose_layout, module_shapes, quantized_modules
from bcquant.quant.repack import requirements
from bcquant.quant.stored_shapes import stored_shapes
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.quant_format import BITS, QuantFormat
from bcquant.spec.recipe import CalibOptions, Recipe

HEAD_BITS = 8  # lm_head is no set: an error in it reaches every logit undiminished
NUM_TOKENS, SEQ_LEN = 2048, 256
# Upper bounds of what stands beside the tensors: their names in headers and the index, and each
# module's rows in manifest, report and configs (1.6 KB, with an override 2.8 KB on SmolLM2).
TENSOR_BYTES, MODULE_BYTES, OTHER_BYTES = 300, 4096, 16384

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


@dataclass(frozen=True)
class Target:
    """How large the result may be; one of the two is given.

    Attributes:
        bits_per_weight: stored bits, scales and zeros included, over all weights of quantized
            modules, as `QuantFormat.bits_per_weight` counts them.
        num_bytes: of the whole checkpoint folder.
    """

    bits_per_weight: float | None = None
    num_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.bits_per_weight is None) == (self.num_bytes is None):
            raise ConfigError("a target is bits a weight or bytes; exactly one is needed")
        value = self.bits_per_weight
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--target-bpw is {value}; a number above 0 is needed")


@dataclass(frozen=True)
class SetBits:
    """Bits that a fused set got and the divergence (nats a token) that they cost alone."""

    layer: int
    stage: int
    bits: int
    predicted_kl: float


@dataclass(frozen=True)
class Allocation:
    """Formats of a whole model.

    Attributes:
        format: the most frequent one.
        overrides: module -> format where it differs, as `Recipe.overrides`.
        sets: every fused set in model order.
        bits_per_weight: what was reached, counted as `Target.bits_per_weight`.
        predicted_kl: sum over the sets, nats a token.
    """

    format: QuantFormat
    overrides: tuple[tuple[str, QuantFormat], ...]
    sets: tuple[SetBits, ...]
    bits_per_weight: float
    predicted_kl: float

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these formats."""
        return replace(recipe, format=self.format, overrides=self.overrides)


def parse_size(text: str) -> int:
    """Bytes of "2GB", "700 MB", "1.5GiB" or "123456".

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise ConfigError(
            f"--target-size is {text!r}; a size such as 2GB, 700MB or 1.5GiB is needed"
        )
    return int(float(match[1]) * UNITS[match[2].lower()])


def allocate(
    source: ModelSource,
    recipe: Recipe,
    target: Target,
    out: Path,
    restart: bool = False,
    progress: Progress = lambda what, done, total: None,
    choices: tuple[int, ...] = BITS,
) -> Allocation:
    """Measure what each set's bits cost, then choose the cheapest that keep the target.

    Deterministic, and what is measured stays in `<out>.work` until the quantization run that
    follows has ended: the same command gets the same bits again after a kill.

    Args:
        recipe: group size, symmetry, calibration text and output form; its bits do not matter.
        out: folder that the quantization will create.
    Raises:
        ConfigError: the target is too small (the message says what is possible), or the work
            folder belongs to other settings.
        BcquantError: as `choose_layout`, `check_floats` and `measure_sets`.
    """
    work = out.with_name(out.name + ".work")
    if os.path.lexists(out) and (restart or not work.exists()):
        raise ExportError(f"{out}: exists; remove it or choose another output with -o")
    formats = _formats(source, recipe, choices)
    layout = choose_layout(source, replace(recipe, format=formats[-1]))
    check_floats(source, recipe, layout)
    weights = _Weights(source, recipe, formats, layout.keeps_names)
    sizes, limit = weights.sizes(target)
    costs = measure_sets(
        source, _few_tokens(source, recipe.calib), formats, work / "allocation", recipe.calib.seed,
        restart, progress, recipe.rotate,
    )  # fmt: skip
    table = [[cost.kl[fmt.bits] for fmt in formats] for cost in costs]
    chosen = [formats[i] for i in cheapest_choices(table, sizes, limit)]
    return weights.allocation(costs, chosen)


def _formats(
    source: ModelSource, recipe: Recipe, choices: tuple[int, ...]
) -> tuple[QuantFormat, ...]:
    """The formats, fewest bits first, that the output can hold for every module.

    Raises:
        ExportError: there are none; the message says why for the widest.
    """
    shapes = module_shapes(source)
    modules = [m for m in quantized_modules(source, recipe) if m != "lm_head"]
    possible, reasons = [], [""]
    for bits in sorted(choices):
        fmt = replace(recipe.format, bits=bits)
        reasons = [r for m in modules for r in requirements(fmt, *shapes[m], recipe.output)]
        if not reasons:
            possible.append(fmt)
    if not possible:
        raise ExportError(
            f"no number of bits can be written as {recipe.output} for every module: {reasons[0]}"
        )
    return tuple(possible)


def _few_tokens(source: ModelSource, calib: CalibOptions) -> CalibrationTokens:
    few = min(calib.num_tokens, NUM_TOKENS)
    return tokens_for(source, replace(calib, num_tokens=few, seq_len=min(calib.seq_len, SEQ_LEN)))


class _Weights:
    """The sets of a model and what they weigh in each format."""

    def __init__(
        self,
        source: ModelSource,
        recipe: Recipe,
        formats: tuple[QuantFormat, ...],
        keeps_names: bool,
    ) -> None:
        self.source, self.recipe, self.formats = source, recipe, formats
        self.keeps_names = keeps_names
        self.shapes = module_shapes(source)
        self.head = replace(recipe.format, bits=HEAD_BITS) if recipe.lm_head else None
        self.sets = [
            [f"model.layers.{layer}.{short}" for short in stage]
            for layer in range(source.config.num_layers)
            for stage in STAGES
        ]

    def sizes(self, target: Target) -> tuple[list[list[int]], int]:
        """Size of every set in every format, and what they may take together, in bits or bytes.

        Raises:
            ConfigError: no choice is small enough.
        """
        in_bits = target.bits_per_weight is not None
        measure = self._bits if in_bits else self._bytes
        sizes = [[measure(names, fmt) for fmt in self.formats] for names in self.sets]
        head = 0 if self.head is None else measure(["lm_head"], self.head)
        smallest = head + sum(min(row) for row in sizes)
        finest = f"{self.formats[0].bits} bits in groups of {self.recipe.format.group_size}"
        if target.bits_per_weight is not None:
            total = self._num_weights()
            limit = math.floor(target.bits_per_weight * total)
            if smallest > limit:
                raise ConfigError(
                    f"--target-bpw {target.bits_per_weight:g}: the smallest possible is "
                    f"{math.ceil(1e4 * smallest / total) / 1e4:g} ({finest}); give more, or "
                    "another --group-size"
                )
            return sizes, limit - head
        assert target.num_bytes is not None
        beside = self._bytes_beside()
        if smallest + beside > target.num_bytes:
            raise ConfigError(
                f"--target-size of {target.num_bytes} bytes: the smallest possible is "
                f"{smallest + beside} bytes ({finest}; {beside} are embeddings, norms, tokenizer "
                "and reports); give more, or another --group-size"
            )
        return sizes, target.num_bytes - beside - head

    def allocation(self, costs: list[SetCost], chosen: list[QuantFormat]) -> Allocation:
        """The result for one format a set."""
        named = {m: fmt for names, fmt in zip(self.sets, chosen, strict=True) for m in names}
        if self.head is not None:
            named["lm_head"] = self.head
        base = Counter(named.values()).most_common(1)[0][0]
        rows = tuple(
            SetBits(*divmod(i, len(STAGES)), fmt.bits, cost.kl[fmt.bits])
            for i, (cost, fmt) in enumerate(zip(costs, chosen, strict=True))
        )
        return Allocation(
            base,
            tuple((m, fmt) for m, fmt in named.items() if fmt != base),
            rows,
            sum(self._bits([m], fmt) for m, fmt in named.items()) / self._num_weights(),
            sum(row.predicted_kl for row in rows),
        )

    def _modules(self) -> list[str]:
        return quantized_modules(self.source, self.recipe)

    def _num_weights(self) -> int:
        return sum(math.prod(self.shapes[m]) for m in self._modules())

    def _bits(self, names: list[str], fmt: QuantFormat) -> int:
        """As `QuantFormat.bits_per_weight` counts, in whole bits."""
        total = 0
        for n, k in (self.shapes[m] for m in names):
            per_group = 16 + (0 if fmt.symmetric else fmt.bits)
            total += n * (fmt.bits * k + per_group * fmt.num_groups(k))
        return total

    def _bytes(self, names: list[str], fmt: QuantFormat) -> int:
        """Of the tensors in the file; W_pack is one module where names are kept."""
        parts = [self.shapes[m] for m in names]
        if self.keeps_names and len(parts) == len(STAGES[0]):
            parts = [(sum(n for n, _ in parts), parts[0][1])]
        return sum(
            TensorSpec(suffix, dtype, shape).num_bytes
            for n, k in parts
            for suffix, (dtype, shape) in stored_shapes(fmt, n, k, self.recipe.output).items()
        )

    def _bytes_beside(self) -> int:
        """Of everything but the sets' tensors; a little more than there will be."""
        quantized = set(self._modules())
        floats = [
            shape
            for name, shape in canonical_tensors(self.source.config)
            if name.removesuffix(".weight") not in quantized
        ]
        num_tensors = len(floats) + 4 * len(quantized)
        with tempfile.TemporaryDirectory() as folder:
            export_tokenizer(self.source.path, folder)
            tokenizer = sum(file.stat().st_size for file in Path(folder).iterdir())
        return (
            sum(2 * math.prod(shape) for shape in floats)
            + TENSOR_BYTES * num_tensors
            + MODULE_BYTES * len(quantized)
            + OTHER_BYTES
            + tokenizer
        )
