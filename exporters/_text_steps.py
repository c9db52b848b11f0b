"""The steps of a `tokenizer.json` before its model, as every exporter reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bcquant.errors import ExportError
from bcquant.runtime.gguf_tokenizer import SPLITS
from bcquant.runtime.token_backends import SPACE_MARK

Json = Mapping[str, Any]


def preparation(state: Json) -> list[Json]:
    """Normalizer and pre-tokenizer one after the other, sequences of normalizers laid flat.

    Args:
        state: the parsed `tokenizer.json`.
    """
    steps = [step for step in (state.get("normalizer"), state.get("pre_tokenizer")) if step]
    return [inner for step in steps for inner in step.get("normalizers", [step])]


def without_nfc(state: Json) -> tuple[bool, list[Json]]:
    """Whether text is brought to form C before anything else, and the steps that follow."""
    steps = preparation(state)
    has_nfc = bool(steps) and steps[0].get("type") == "NFC"
    return has_nfc, steps[has_nfc:]


def marks_spaces(step: Json) -> bool:
    """Whether a step replaces every space by its mark and does nothing else."""
    return (
        step.get("type") == "Replace"
        and step.get("pattern") == {"String": " "}
        and step.get("content") == SPACE_MARK
    )


def split_steps(
    state: Json, digits: str, name: str, unknown: str
) -> tuple[tuple[str, ...], list[str]]:
    """What cuts a text for byte-level BPE: expressions in order, and the kinds of the steps.

    Args:
        state: the parsed `tokenizer.json`.
        digits: stands for a step that takes every digit by itself.
        name: of the tokenizer, for an error.
        unknown: what a step is that no exporter reads, for an error.
    Raises:
        ExportError: a step of another kind, or with other settings.
    """
    pre_tokenizer = state.get("pre_tokenizer")
    steps = [pre_tokenizer] if pre_tokenizer else []
    if steps and steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    found: list[str] = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            found += SPLITS["gpt-2"] if step.get("use_regex", True) else ()
        elif kind == "Digits" and step.get("individual_digits"):
            found.append(digits)
        elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append(str(step["pattern"].get("Regex", "")))
        else:
            raise ExportError(
                f"{name}: its pre-tokenizer step {json.dumps(step)[:200]} is {unknown}"
            )
    return tuple(found), [step["type"] for step in steps]
