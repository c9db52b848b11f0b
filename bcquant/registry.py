"""One method, one file: the file's name is its key.

A registry is a package folder; `load("bcquant.solvers", "gptq", "SOLVER")` imports
`bcquant/solvers/gptq.py` and returns its `SOLVER`. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from bcquant.errors import ConfigError


def names(package: str) -> list[str]:
    """Keys of a registry package: its public module names, sorted."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def load(package: str, key: str, attribute: str) -> Any:
    """Return `attribute` of the module named `key` in `package`.

    Raises:
        ConfigError: there is no such module, or it does not define `attribute`; the message
            names the nearest key.
    """
    known = names(package)
    if key not in known:
        raise ConfigError(f"{package}: {key!r} is unknown; {nearest(key, known)}")
    module = importlib.import_module(f"{package}.{key}")
    if not hasattr(module, attribute):
        raise ConfigError(f"{package}.{key}: defines no {attribute}; it is not a {package} entry")
    return getattr(module, attribute)


def nearest(key: str, known: list[str]) -> str:
    """Advice for an unknown key: the closest known one, else the list."""
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known) or 'none'}"
