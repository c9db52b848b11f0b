"""One run of `bcquant verify`: open both sides, make the checks, seal the certificate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bcquant.calib.dataset import I64Array
from bcquant.errors import CheckpointError, ConfigError
from bcquant.eval.verify.backend import Backend, BackendKind, choose_backend
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.eval.verify.certificate import (
    Certificate,
    Check,
    describe_files,
    package_versions,
)
from bcquant.eval.verify.checks import (
    Progress,
    check_epsilons,
    check_greedy,
    check_logits,
    check_perplexity,
    check_rounding,
    check_settings,
    check_tokens,
    check_weights,
    compare_logits,
    first_layer,
)
from bcquant.eval.verify.export_facts import Arithmetic, arithmetic_of, open_export
from bcquant.eval.verify.read_onnx import OnnxWeights
from bcquant.eval.verify.read_package import PackageWeights, check_package_settings
from bcquant.eval.verify.stored_weights import (
    StoredWeights,
    TensorDiff,
    check_same_model,
    compare_weights,
)
from bcquant.models.source import ModelSource, open_model

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
)
_MIN_WINDOW = 2


@dataclass(frozen=True)
class VerifyOptions:
    """How both sides are compared.

    Attributes:
        text: what the logits are compared on; "name" is only written down.
        text_name: where it came from.
        max_tokens: of it, in windows of `seq_len`.
        prompts: for greedy decoding, `new_tokens` each.
        backend: key of the program that runs the export; None = by what the export is.
        max_weight_error: relative error of a tensor that is accepted, for lossy exports.
    """

    text: str
    text_name: str = "builtin"
    max_tokens: int = 2048
    seq_len: int = 512
    prompts: tuple[str, ...] = PROMPTS
    new_tokens: int = 64
    backend: str | None = None
    max_weight_error: float = 0.0

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--max-tokens", self.max_tokens, _MIN_WINDOW),
            ("--seq-len", self.seq_len, _MIN_WINDOW),
            ("--new-tokens", self.new_tokens, 1),
        ):
            if value < least:
                raise ConfigError(f"{flag} is {value}; at least {least} is needed")
        if not 0 <= self.max_weight_error < 1:
            raise ConfigError(
                f"--max-weight-error is {self.max_weight_error}; 0 to below 1 is needed"
            )


def verify(
    source_path: str | Path, export_path: Path, options: VerifyOptions, progress: Progress
) -> Certificate:
    """Compare an export with the checkpoint that it was made from.

    Args:
        progress: told (what, done, total).
    Returns:
        the certificate, not yet written.
    Raises:
        CheckpointError: a file is missing or damaged, the export is of another model, or its
            program refuses it.
        ConfigError: a setting cannot be used, or the program is not installed.
    """
    start_s = time.monotonic()
    with ExitStack() as stack:
        stored = stack.enter_context(closing(open_export(export_path)))
        opened = stack.enter_context(open_model(source_path))
        check_same_model(opened, stored)
        kind = choose_backend(export_path, options.backend)
        diffs = compare_weights(opened, stored, progress)
        sides = _open_sides(stack, opened, stored, kind, options, diffs)
        rounds, allowed = sides.arithmetic.graph.rounds_weights, options.max_weight_error
        wrong = [diff for diff in diffs if not diff.is_accepted(rounds, allowed)]
        checks = [check_tokens(sides.source, sides.export), check_weights(diffs, wrong, allowed)]
        if stored.config is not None:
            checks.append(check_settings(opened.config, stored.config))
        if isinstance(stored, OnnxWeights):
            checks.append(check_epsilons(opened.config, stored.epsilons()))
        if isinstance(stored, PackageWeights):
            checks.append(check_package_settings(opened, sides.source.end_ids, stored))
        checks += _run_both(sides, options, progress)
        diverges = wrong[0].name if wrong else _first_layer(sides, checks)
        return Certificate(
            source=describe_files(Path(opened.path)),
            export=describe_files(export_path),
            backend=kind.name,
            thresholds=sides.arithmetic.limits,
            graph_thresholds=sides.arithmetic.graph,
            settings={key: value for key, value in asdict(options).items() if key != "text"},
            versions=package_versions(kind.package),
            checks=tuple(checks),
            diverges=diverges,
            seconds=time.monotonic() - start_s,
        )


@dataclass(frozen=True)
class _Sides:
    """Both sides open; `exact` is the export without rounded activations, if there is such a mode.

    `windows` are the tokens that both are run on.
    """

    source: CoreBackend
    export: Backend
    exact: Backend | None
    arithmetic: Arithmetic
    windows: list[I64Array]


def _open_sides(
    stack: ExitStack,
    opened: ModelSource,
    stored: StoredWeights,
    kind: BackendKind,
    options: VerifyOptions,
    diffs: Sequence[TensorDiff],
) -> _Sides:
    """Load both models; the stack closes them."""
    path, source = stored.path, CoreBackend(opened)
    theirs = stored.model if isinstance(stored, PackageWeights) else stored.config
    context = min(sizes.max_positions for sizes in (opened.config, theirs) if sizes)
    windows = _windows(source, options, context)
    max_tokens = max(len(windows[0]), _longest_greedy(source, options, context))
    export = stack.enter_context(closing(kind.open(path, max_tokens)))
    if export.vocab_size != source.vocab_size:
        raise CheckpointError(
            f"{path}: its vocabulary has {export.vocab_size} tokens, the source's "
            f"{source.vocab_size}: this is an export of another model"
        )
    arithmetic = arithmetic_of(stored, source.rounds_activations, diffs)
    exact = None
    if arithmetic.has_exact_mode and kind.open_exact is not None:
        exact = stack.enter_context(closing(kind.open_exact(path, max_tokens)))
    return _Sides(source, export, exact, arithmetic, windows)


def _run_both(sides: _Sides, options: VerifyOptions, progress: Progress) -> list[Check]:
    """The checks that run the models."""
    source, windows, limits = sides.source, sides.windows, sides.arithmetic.limits
    pairs: list[tuple[Backend, Backend]] = [(source, sides.export)]
    if sides.exact is not None:
        pairs.append((source.unrounded(), sides.exact))
    found, *bare = compare_logits(pairs, windows, progress)
    checks = [check_logits("logits", found, limits)]
    checks += [check_logits("graph", each, sides.arithmetic.graph) for each in bare]
    # A float16 graph rounds other values than the source does, from the first block on.
    is_float32 = sides.arithmetic.graph.kind == "float32"
    if sides.exact is not None and source.rounds_activations and is_float32:
        checks += check_rounding(source, sides.export, windows[0].tolist())
    checks.append(check_perplexity(found, limits))
    tie = limits.tie * found.spread
    greedy = check_greedy(source, sides.export, options.prompts, options.new_tokens, tie, progress)
    return [*checks, greedy]


def _first_layer(sides: _Sides, checks: Sequence[Check]) -> str | None:
    """Where the residual streams part, if a check that runs the models failed."""
    failed = {check.name for check in checks if not check.passed}
    ids = sides.windows[0].tolist()
    if "graph" in failed and sides.exact is not None:
        return first_layer(sides.source.unrounded(), sides.exact, ids, sides.arithmetic.graph)
    if failed & {"rounding", "logits", "perplexity", "greedy"}:
        return first_layer(sides.source, sides.export, ids, sides.arithmetic.limits)
    return None


def _windows(source: CoreBackend, options: VerifyOptions, context: int) -> list[I64Array]:
    """Windows of the text's first tokens; what is left over beyond whole windows is dropped.

    Args:
        context: most tokens that both sides take.
    """
    used = np.asarray(source.text_ids(options.text)[: options.max_tokens], np.int64)
    if len(used) < _MIN_WINDOW:
        raise ConfigError(f"the text has {len(used)} tokens; at least {_MIN_WINDOW} are needed")
    size = min(options.seq_len, len(used), context)
    return [used[i : i + size] for i in range(0, len(used) - size + 1, size)]


def _longest_greedy(source: CoreBackend, options: VerifyOptions, context: int) -> int:
    """Tokens of the longest prompt and what is to come after it."""
    longest = options.new_tokens + max(len(source.encode(prompt)) for prompt in options.prompts)
    if longest > context:
        raise ConfigError(
            f"the longest prompt and {options.new_tokens} new tokens are {longest} tokens; the "
            f"model's context is {context}: lower --new-tokens"
        )
    return longest
