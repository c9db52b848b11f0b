"""How a checkpoint says it is quantized, and the checks that every config parser shares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bcquant.errors import CheckpointError, ConfigError
from bcquant.spec.quant_format import QuantFormat


@dataclass(frozen=True)
class Override:
    """What modules whose name starts with a match of `pattern` use; format None = not quantized."""

    pattern: str
    format: QuantFormat | None


@dataclass(frozen=True)
class QuantSpec:
    """How a checkpoint is quantized.

    Attributes:
        method: "gptq", "awq" or "compressed-tensors".
        version: "v1" or "v2" for gptq; "gemm" for awq; "pack-quantized" or "int-quantized" for
            compressed-tensors.
        format: of every quantized module that no override names.
        lm_head: the output layer is quantized too.
        ignore: module names that stay float ("re:" marks a pattern), as the config spells them.
        dynamic: overrides, the first match wins.
    """

    method: str
    version: str
    format: QuantFormat
    lm_head: bool = False
    ignore: tuple[str, ...] = ()
    dynamic: tuple[Override, ...] = ()

    def format_of(self, module: str) -> QuantFormat | None:
        """Format of a module by its name in the checkpoint; None = the config leaves it float."""
        if any(is_ignored_by(entry, module) for entry in self.ignore):
            return None
        if module.rpartition(".")[2] == "lm_head" and not self.lm_head:
            return None
        for override in self.dynamic:
            if re.match(override.pattern, module):
                return override.format
        return self.format


def is_ignored_by(entry: str, module: str) -> bool:
    """Whether an entry of `QuantSpec.ignore` means a module."""
    if entry.startswith("re:"):
        return re.match(entry[3:], module) is not None
    return entry == module


def field(entry: Mapping[str, Any], key: str, kind: type, name: str, default: Any = None) -> Any:
    """A value of a config by key; `default` where it is absent or null.

    Args:
        name: of the file or dict, for the message.
    Raises:
        CheckpointError: it is not of type `kind`; a bool is no int.
    """
    value = entry.get(key)
    if value is None:
        value = default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"{name}: {key} is {value!r}; {kind.__name__} is needed")
    return value


def strings(values: Any, where: str) -> tuple[str, ...]:
    """A config's list of names. CheckpointError: it is not a list of strings."""
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise CheckpointError(f"{where} is {kind_of(values)}; a list of names is needed")
    return tuple(values)


def checked_pattern(pattern: str, name: str) -> str:
    """The pattern itself. ConfigError: it is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{name}: pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    return pattern


def kind_of(value: Any) -> str:
    """The type of a config's value in words, for messages."""
    return "absent" if value is None else f"a {type(value).__name__}"
