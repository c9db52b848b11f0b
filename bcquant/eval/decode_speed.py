"""A package's prefill and decode measured, the work behind `bcquant bench decode`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcquant.errors import ConfigError
from bcquant.kernels.runtime_native import (
    F32Array,
    MemoryPlan,
    Model,
    Package,
    RuntimeOptions,
    Session,
    open_package,
)

_CHUNK_TOKENS = 128  # of a prompt, between two looks at Ctrl-C


class Spread(NamedTuple):
    """A figure over the repeats."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class DecodeFigures:
    """What was measured; rates in tokens/s.

    Attributes:
        tier: of the kernels.
        activations: "exact", "int8" or "int8_token".
        open_s: to map the package, check its structure and prepare.
        prefill: prompt tokens over the seconds until their logits were there.
        decode: new tokens after the first over the seconds that they took.
        first_token_s: from an empty session to the first new token.
        plan: bytes that the runtime said it needs.
        resident_bytes: of this process after the last repeat, the mapped weights in it; None where
            the system does not say.
        before_bytes: the same before the package was opened: Python and its libraries.
    """

    tier: str
    activations: str
    open_s: float
    prefill: Spread
    decode: Spread
    first_token_s: Spread
    plan: MemoryPlan
    resident_bytes: int | None
    before_bytes: int | None


def measure_decode(
    path: Path,
    num_prompt: int,
    num_tokens: int,
    repeats: int,
    options: RuntimeOptions,
    progress: Callable[[str, int, int], None],
) -> DecodeFigures:
    """Prefill and decode `repeats` times after one time that is not counted.

    Args:
        num_tokens: drawn greedily, at least 2; an end token ends nothing.
        progress: told after every token what is done, of how many.
    Raises:
        CheckpointError: the package is missing or damaged.
        ConfigError: it has too few positions.
        KernelError: an option is out of range.
    """
    before = resident_bytes()
    start = time.perf_counter()
    with (
        open_package(path, checks_digests=False) as package,
        package.model(options) as model,
    ):
        open_s = time.perf_counter() - start
        context = num_prompt + num_tokens
        if context > model.info.max_positions:
            raise ConfigError(
                f"{num_prompt} prompt and {num_tokens} new tokens are {context}; {path} has "
                f"{model.info.max_positions} positions, so lower --prompt-tokens or --tokens"
            )
        prompt = _prompt(package, num_prompt)
        runs = [
            _run(model, prompt, num_tokens, f"repeat {i} of {repeats}" if i else "warming up",
                 progress)
            for i in range(repeats + 1)
        ][1:]  # fmt: skip
        return DecodeFigures(
            tier=model.tier,
            activations=options.activations or model.info.activations,
            open_s=open_s,
            prefill=_spread([num_prompt / run.prefill_s for run in runs]),
            decode=_spread([(num_tokens - 1) / run.decode_s for run in runs]),
            first_token_s=_spread([run.first_token_s for run in runs]),
            plan=package.plan(context, options),
            resident_bytes=runs[-1].resident_bytes,
            before_bytes=before,
        )


def resident_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Physical memory of this process; None on a system that does not say it there."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    words = next((line.split() for line in lines if line.startswith("VmRSS:")), [])
    return 1024 * int(words[1]) if len(words) > 1 and words[1].isdecimal() else None


class _Run(NamedTuple):
    """Seconds of one repeat, and what was resident at its end, caches included."""

    prefill_s: float
    first_token_s: float
    decode_s: float
    resident_bytes: int | None


def _run(
    model: Model,
    prompt: list[int],
    num_tokens: int,
    what: str,
    progress: Callable[[str, int, int], None],
) -> _Run:
    total = len(prompt) + num_tokens
    with model.session(total) as session:
        start = time.perf_counter()
        logits_V = _prefill(session, prompt, lambda done: progress(what, done, total))
        prefilled = time.perf_counter()
        token = int(np.argmax(logits_V))
        ready = time.perf_counter()
        for i in range(1, num_tokens):
            token = int(np.argmax(session.append([token])))
            progress(what, len(prompt) + i + 1, total)
        end = time.perf_counter()
        return _Run(prefilled - start, ready - start, end - ready, resident_bytes())


def _prefill(session: Session, prompt: list[int], said: Callable[[int], None]) -> F32Array:
    """Logits after the prompt."""
    for first in range(0, len(prompt), _CHUNK_TOKENS):
        logits_V = session.append(prompt[first : first + _CHUNK_TOKENS])
        said(min(first + _CHUNK_TOKENS, len(prompt)))
    return logits_V


def _prompt(package: Package, num_tokens: int) -> list[int]:
    """Ids of a text, over and over; any ids where the package has no tokenizer."""
    from bcquant.io.package_index import TOKENIZER

    ids = list(range(package.info.vocab_size))
    if package.section(TOKENIZER) is not None:
        from bcquant.calib.dataset import builtin_text

        with package.tokenizer() as tokenizer:
            ids = tokenizer.encode(builtin_text("evaluation"))
    return (ids * (1 + num_tokens // len(ids)))[:num_tokens]


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
