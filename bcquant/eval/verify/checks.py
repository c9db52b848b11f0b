"""The checks: each compares one thing on both sides and says where it first differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bcquant.calib.dataset import I64Array
from bcquant.eval.verify.agreement import Agreement, AgreementMeter
from bcquant.eval.verify.backend import Backend, F32Array
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.eval.verify.certificate import Check
from bcquant.eval.verify.corpus import hard_corpus
from bcquant.eval.verify.stored_weights import TensorDiff
from bcquant.eval.verify.thresholds import ROUNDING_ERROR, Thresholds
from bcquant.spec.model_config import ModelConfig

Progress = Callable[[str, int, int], None]

# What changes the logits and is no shape; a context length or an end token does not.
_ARITHMETIC = (
    "rms_norm_eps", "position", "rope_theta", "rope_scaling", "num_heads", "num_kv_heads",
    "head_dim", "tie_embeddings", "qkv_bias", "o_bias", "mlp_bias", "qk_norm", "windows",
)  # fmt: skip


def check_tokens(source: CoreBackend, export: Backend) -> Check:
    """The same ids for every text of the hard corpus."""
    texts = hard_corpus(source.pieces())
    different = []
    for text in texts:
        ours, theirs = source.encode(text), export.encode(text)
        if ours != theirs:
            different.append((text, ours, theirs))
    problem = None
    if different:
        text, ours, theirs = different[0]
        problem = (
            f"{len(different)} of {len(texts)} texts get other token ids, the first being "
            f"{_short(text)}: {_ids(theirs)} where the source gives {_ids(ours)}"
        )
    figures = {"texts": len(texts), "different": len(different)}
    return Check("tokens", not different, figures, {"different": 0}, problem)


def check_weights(diffs: Sequence[TensorDiff], wrong: Sequence[TensorDiff], limit: float) -> Check:
    """Every tensor is the source's.

    Args:
        wrong: those that are not accepted.
        limit: relative error of a tensor that the user accepts.
    """
    worst = max(diffs, key=lambda diff: diff.error)
    figures: dict[str, Any] = {
        "tensors": len(diffs),
        "different": sum(not diff.is_equal for diff in diffs),
        "rejected": len(wrong),
        "error": worst.error,
        "worst": None if worst.is_equal else worst.name,
        "changed": max(diff.changed for diff in diffs),
        "scale_change": max(diff.scale_change for diff in diffs),
        "stored_as": _counted([diff.stored_as for diff in diffs]),
    }
    problem = None
    if wrong:
        first = wrong[0]
        problem = (
            f"{first.name}, stored as {first.stored_as}, differs: {first.changed:.3g} of its "
            f"numbers, a scale by {first.scale_change:.3g}, its values by {first.error:.3g}; "
            f"{len(wrong)} of {len(diffs)} tensors do"
        )
    return Check("weights", not wrong, figures, {"error": limit}, problem)


def check_settings(source: ModelConfig, export: ModelConfig) -> Check:
    """The model settings that enter the arithmetic, within the context that both declare."""
    context = min(source.max_positions, export.max_positions)
    different = [
        key
        for key in _ARITHMETIC
        if _setting(source, key, context) != _setting(export, key, context)
    ]
    problem = None
    if different:
        key = different[0]
        problem = (
            f"{key} is {getattr(export, key)!r} in the export and {getattr(source, key)!r} in the "
            "source"
        )
    figures = {"settings": len(_ARITHMETIC), "different": len(different)}
    return Check("settings", not different, figures, {"different": 0}, problem)


def check_epsilons(source: ModelConfig, epsilons: Mapping[str, float]) -> Check:
    """A graph's norm epsilons: where activations are large no logit shows a wrong one.

    Args:
        epsilons: by node name.
    """
    wanted = np.float32(source.rms_norm_eps)
    wrong = {name: value for name, value in epsilons.items() if np.float32(value) != wanted}
    problem = None
    if wrong:
        name, value = next(iter(wrong.items()))
        problem = f"epsilon of {name} is {value:.3g} and {source.rms_norm_eps:.3g} in the source"
    figures = {"settings": len(epsilons), "different": len(wrong)}
    return Check("settings", not wrong, figures, {"different": 0}, problem)


def compare_logits(
    pairs: Sequence[tuple[Backend, Backend]], windows: Sequence[I64Array], progress: Progress
) -> list[Agreement]:
    """Agreement of each (source, export) on all windows, one window at a time.

    A source that comes twice in a row is asked once.
    """
    meters = [AgreementMeter() for _ in pairs]
    for i, ids in enumerate(windows):
        progress("logits", i, len(windows))
        asked: Backend | None = None
        for meter, (source, export) in zip(meters, pairs, strict=True):
            if source is not asked:
                asked, wanted = source, source.logits(ids.tolist())
            meter.add(wanted, export.logits(ids.tolist()), ids)
    progress("logits", len(windows), len(windows))
    return [meter.result() for meter in meters]


def check_rounding(source: CoreBackend, export: Backend, ids: Sequence[int]) -> list[Check]:
    """W8A8: the first block's output, before steps of int8 add up; [] if it cannot be seen."""
    theirs = export.hidden(ids)
    if not theirs:
        return []
    error = _token_error(source.first_block(ids), theirs[0])
    problem = None
    if not error <= ROUNDING_ERROR:
        problem = f"activations are rounded in another way: layer 0's output differs by {error:.3g}"
    limits = {"error": ROUNDING_ERROR}
    return [Check("rounding", problem is None, {"error": error}, limits, problem)]


def check_logits(name: str, found: Agreement, limits: Thresholds) -> Check:
    """Errors, divergences and top-1 agreement within the limits."""
    wanted = {
        "relative_error": limits.max_error,
        "kl_mean": limits.kl_mean,
        "kl_999": limits.kl_999,
        "top1": limits.top1,
    }
    figures = {**asdict(found), "relative_error": found.relative_error}
    del figures["perplexity"]
    wrong = [
        key
        for key, limit in wanted.items()
        if (figures[key] < limit if key == "top1" else figures[key] > limit)
    ]
    problem = None
    if wrong:
        said = ", ".join(f"{key} {figures[key]:.3g} (limit {wanted[key]:.3g})" for key in wrong)
        problem = f"logits differ by more than {limits.means} explain: {said}"
    return Check(name, not wrong, figures, wanted, problem)


def check_perplexity(found: Agreement, limits: Thresholds) -> Check:
    """Relative change of perplexity."""
    change = abs(found.perplexity_change)
    figures = {
        "source": found.perplexity[0],
        "export": found.perplexity[1],
        "change": found.perplexity_change,
    }
    problem = None
    if change > limits.perplexity:
        problem = f"perplexity goes from {found.perplexity[0]:.5g} to {found.perplexity[1]:.5g}"
    return Check("perplexity", problem is None, figures, {"change": limits.perplexity}, problem)


def check_greedy(
    source: CoreBackend,
    export: Backend,
    prompts: Sequence[str],
    num_tokens: int,
    tie: float,
    progress: Progress,
) -> Check:
    """The export's greedy tokens are the source's, read along in one pass a prompt.

    At every step the source is given the export's own tokens, so a near tie that falls the other
    way does not end the comparison.

    Args:
        tie: a logit gap of the source that counts as a tie.
    """
    num_steps, ties, problems, worst_gap = 0, 0, [], 0.0
    for i, prompt in enumerate(prompts):
        progress("greedy", i, len(prompts))
        ids = source.encode(prompt)
        found = _until_end(export.greedy(ids, num_tokens), source.end_ids)
        logits_SV = source.logits([*ids, *found])[len(ids) - 1 : -1]
        gaps = logits_SV.max(axis=1) - logits_SV[np.arange(len(found)), found]
        num_steps += len(found)
        ties += int(((gaps > 0) & (gaps <= tie)).sum())
        worst_gap = max(worst_gap, float(gaps.max()))
        for step in np.flatnonzero(gaps > tie)[:1]:
            problems.append(
                f"after {_short(prompt)}, token {step} is {found[step]} where the source has "
                f"{int(logits_SV[step].argmax())}, {gaps[step]:.3g} ahead (a tie is {tie:.3g})"
            )
    progress("greedy", len(prompts), len(prompts))
    figures = {"prompts": len(prompts), "tokens": num_steps, "ties": ties, "gap": worst_gap}
    problem = problems[0] if problems else None
    return Check("greedy", not problems, figures, {"gap": tie}, problem)


def first_layer(
    source: Backend, export: Backend, ids: Sequence[int], limits: Thresholds
) -> str | None:
    """Where the residual streams part; None if the export does not show its own."""
    theirs = export.hidden(ids)
    if not theirs:
        return None
    for layer, (mine, other) in enumerate(zip(source.hidden(ids), theirs, strict=False)):
        error = _token_error(mine, other)
        if not error <= limits.hidden_error:
            return f"layer {layer}: its output differs by {error:.3g} of its norm"
    return (
        f"no layer: none differs by more than {limits.hidden_error:.3g} of its norm, which leaves "
        "the final norm and the output layer"
    )


def _setting(config: ModelConfig, key: str, context: int) -> Any:
    """A setting as it is compared: 6 digits of a number, no window as wide as the context."""
    value = getattr(config, key)
    if key == "windows":
        return tuple(None if size is None or size >= context else size for size in value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _token_error(mine: F32Array, other: F32Array) -> float:
    """|other - mine| / |mine|, by token: a few have norms a thousand times those of the rest."""
    gaps, norms = (np.linalg.norm(h, axis=1) for h in (other - mine, mine))
    return float((gaps / norms).mean())


def _until_end(ids: list[int], end_ids: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in end_ids]
    return ids[: ends[0] + 1] if ends else ids


def _counted(kinds: list[str]) -> dict[str, int]:
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _ids(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 12 else f"[{', '.join(map(str, ids[:12]))}, ...]"
