"""What `bcquant verify` asks of a program that runs a model, and which program runs what."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bcquant import registry
from bcquant.errors import ConfigError

F32Array = npt.NDArray[np.float32]
PACKAGE = "bcquant.eval.verify.backends"


class Backend(Protocol):
    """A model that is open in some program, with that program's own tokenizer.

    Attributes:
        vocab_size: columns of the logits.
    """

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text with the begin and end tokens that a user of the program gets."""

    def logits(self, ids: Sequence[int]) -> F32Array:
        """Next-token logits of every position, shape (T, vocab), from an empty cache."""

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """Most likely tokens after a prompt, one by one through the program's cache.

        It may end earlier, after an end token of the model.
        """

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """Residual stream after every block, each (T, hidden); [] if it cannot be seen."""

    def close(self) -> None:
        """Release the model; closing twice is fine."""


@dataclass(frozen=True)
class BackendKind:
    """One program: a module of `backends` exports it as BACKEND; the file's name is its key.

    Attributes:
        name: the key.
        package: what to `pip install` for it.
        rank: among those that accept an export, the lowest runs it.
        accepts: (path) -> whether it can run what lies there; looks at names alone.
        open: (path, most tokens in one sequence) -> an open model.
        open_exact: the same with activations in the type of the graph, where `open` may round them
            to int8; None = there is no such mode.
    """

    name: str
    package: str
    rank: int
    accepts: Callable[[Path], bool]
    open: Callable[[Path, int], Backend]
    open_exact: Callable[[Path, int], Backend] | None = None


def backends() -> list[BackendKind]:
    """Every program there is, in the order in which they are tried."""
    found = [registry.load(PACKAGE, key, "BACKEND") for key in registry.names(PACKAGE)]
    return sorted(found, key=lambda kind: kind.rank)


def choose_backend(path: Path, name: str | None) -> BackendKind:
    """The program that is to run an export.

    Args:
        name: a key; None takes the first that accepts it.
    Raises:
        ConfigError: the key is unknown, or that program cannot run what lies at `path`.
    """
    able = [kind for kind in backends() if kind.accepts(path)]
    if name is None:
        return able[0]
    kind: BackendKind = registry.load(PACKAGE, name, "BACKEND")
    if kind not in able:
        known = ", ".join(kind.name for kind in able)
        raise ConfigError(f"{path}: {name} does not run this kind of export; {known} does")
    return kind


def require(module: str, package: str) -> ModuleType:
    """Import what a backend needs.

    Raises:
        ConfigError: it is not installed; the message has the command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{package} is needed to run this export ({error}); pip install {package}"
        ) from error
