"""The AWQ part of config.json, as AutoAWQ and gptqmodel write it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bcquant.errors import CheckpointError, ConfigError
from bcquant.quant.quant_spec import QuantSpec, field, strings
from bcquant.spec.quant_format import QuantFormat


def parse_awq(entry: Mapping[str, Any], name: str) -> QuantSpec:
    """How an AWQ checkpoint is quantized.

    Args:
        entry: the dict whose quant_method is "awq".
        name: of its file, for messages.
    Raises:
        ConfigError: a layout other than "gemm", bits other than 4, or mixed settings.
        CheckpointError: a value is of the wrong type, or two keys contradict each other.
    Source: docs/formats/awq_gemm.md.
    """
    layout = _layout(entry, name)
    if layout != "gemm":
        raise ConfigError(
            f"{name}: AWQ version {layout!r} is laid out for another kernel and cannot be read; "
            "'gemm' is needed"
        )
    bits = field(entry, _spelled(entry, "bits", "w_bit"), int, name)
    if bits != 4:
        raise ConfigError(f"{name}: AWQ with bits {bits} cannot be read; 4 bits are needed")
    if entry.get("dynamic"):
        raise ConfigError(
            f"{name}: AWQ with `dynamic` settings by module cannot be read; one setting is needed"
        )
    group_size = field(entry, _spelled(entry, "group_size", "q_group_size"), int, name)
    # gptqmodel writes "sym" as well. Zeros are stored either way, so nothing is lost by asking
    # this key alone.
    has_zeros = field(entry, "zero_point", bool, name, default=True)
    lm_head = field(entry, "lm_head", bool, name, default=False)
    floats = strings(entry.get("modules_to_not_convert") or [], f"{name}: modules_to_not_convert")
    fmt = QuantFormat(bits, group_size, not has_zeros)
    return QuantSpec("awq", layout, fmt, lm_head, tuple(map(_ignored, floats)))


def _layout(entry: Mapping[str, Any], name: str) -> str:
    keys = [k for k in ("version", "checkpoint_format", "format") if entry.get(k) is not None]
    stored = [str(entry[key]).lower() for key in keys]
    if len(set(stored)) > 1:
        said = ", ".join(f"{key} {value!r}" for key, value in zip(keys, stored, strict=True))
        raise CheckpointError(f"{name}: AWQ says {said}; one layout is needed")
    return stored[0] if stored else "gemm"


def _spelled(entry: Mapping[str, Any], key: str, old_key: str) -> str:
    """AutoAWQ's first releases spelled two keys otherwise."""
    return old_key if key not in entry and old_key in entry else key


def _ignored(part: str) -> str:
    """A whole name up to a dot, or the end of one: what transformers takes an entry for."""
    escaped = re.escape(part)
    return rf"re:(?:{escaped}(?:\.|$)|.*{escaped}$)"
