"""How much memory a model may take, and the float type that fits into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcquant.errors import ConfigError

if TYPE_CHECKING:
    import torch

_GIB = 1 << 30
# Activations, the tokenizer, the interpreter and torch itself.
_OVERHEAD_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """What a resident model takes.

    Attributes:
        dtype: of the weights.
        needed_bytes: weights, key/value cache, the largest tensor once more in float32 (while it is
            being read) and a fixed overhead.
        available_bytes: what the system gives; None where it does not say.
    """

    dtype: torch.dtype
    needed_bytes: int
    available_bytes: int | None

    def describe(self) -> str:
        """One line: "float32, 0.9 GiB needed of 6.2 GiB available"."""
        name = str(self.dtype).removeprefix("torch.")
        known = self.available_bytes
        rest = (
            "available memory unknown" if known is None else f"of {known / _GIB:.1f} GiB available"
        )
        return f"{name}, {self.needed_bytes / _GIB:.1f} GiB needed, {rest}"


def plan_memory(
    num_params: int, largest_tensor: int, num_cache_values: int, available_bytes: int | None
) -> MemoryPlan:
    """Take float32 if it fits, else bfloat16.

    Args:
        num_params: numbers in all tensors that become resident.
        largest_tensor: numbers in the largest of them.
        num_cache_values: numbers in the key/value cache.
        available_bytes: from `available_memory`; None is taken as enough.
    Raises:
        ConfigError: not even bfloat16 fits; the message has the numbers.
    """
    import torch

    plans = []
    for dtype in (torch.float32, torch.bfloat16):
        resident = (num_params + num_cache_values) * dtype.itemsize
        plan = MemoryPlan(dtype, resident + 4 * largest_tensor + _OVERHEAD_BYTES, available_bytes)
        if available_bytes is None or plan.needed_bytes <= available_bytes:
            return plan
        plans.append(plan)
    assert available_bytes is not None
    wide, narrow = (plan.needed_bytes / _GIB for plan in plans)
    raise ConfigError(
        f"the model needs {narrow:.1f} GiB in bfloat16 ({wide:.1f} GiB in float32) but "
        f"{available_bytes / _GIB:.1f} GiB are available; close other programs, lower "
        "--max-new-tokens, or use a machine with more memory"
    )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken without swapping, the container's limit included.

    Args:
        root: where `proc` and `sys` are mounted.
    Returns:
        None on a system without /proc/meminfo.
    """
    free = _field(root / "proc/meminfo", "MemAvailable:")
    if free is None:
        return None
    free *= 1024
    group = root / "sys/fs/cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return free
    # Cached file pages count as used but are given back on demand.
    cached = _field(group / "memory.stat", "inactive_file") or 0
    return max(0, min(free, limit - used + cached))


def _field(path: Path, key: str) -> int | None:
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == key and words[1].isdecimal():
            return int(words[1])
    return None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # this kernel does not have it
        return ""
