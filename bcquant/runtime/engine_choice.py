"""Which engine runs a checkpoint, and why; torch is imported only where it is the one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bcquant.errors import ConfigError, KernelError
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.generation import TextEngine

ENGINES = ("auto", "native", "torch")


def open_engine(
    path_or_id: str | Path,
    engine: str = "auto",
    num_threads: int | None = None,
    precision: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> TextEngine:
    """Load a checkpoint into the native engine or into torch, or a package into its runtime.

    Args:
        path_or_id: also a package, `NAME.bcq`, which runs natively whatever is in it.
        engine: one of `ENGINES`; "auto" takes native for a quantized checkpoint that the kernels
            can run.
        num_threads: None = `physical_cores()` for native, torch's own choice for torch.
        precision: "exact" or "int8" for native, None = "int8", for a package what it says; torch
            computes exactly only.
        say: told in one line which engine runs, how, and why where it is torch.
    Raises:
        CheckpointError, ConfigError: it cannot be read, or cannot run as asked.
        KernelError: the kernel tier that was asked for is not here.
    """
    check_threads(num_threads)
    if Path(path_or_id).suffix.lower() == ".bcq":
        return _open_package(path_or_id, engine, num_threads, precision, say)
    with open_model(path_or_id) as source:
        reason = why_torch(source, engine)
        if reason is None:
            from bcquant.runtime.native_engine import NativeEngine
            from bcquant.runtime.native_model import NativeOptions

            options = NativeOptions(num_threads or physical_cores(), precision or "int8")
            return NativeEngine.from_source(source, options, say)
    if precision == "int8":
        raise ConfigError(
            f"--precision int8 needs the native engine, and torch it is: {reason}; leave it out"
        )
    import torch

    from bcquant.runtime.engine import Engine

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    return Engine.load(path_or_id, say=lambda line: say(f"torch engine ({reason}): {line}"))


def _open_package(
    path: str | Path,
    engine: str,
    num_threads: int | None,
    precision: str | None,
    say: Callable[[str], None],
) -> TextEngine:
    from bcquant.kernels.runtime_native import RuntimeOptions
    from bcquant.runtime.package_engine import PackageEngine

    if engine not in ("auto", "native"):
        raise ConfigError(
            f"{path}: a package runs in the native engine; leave out --engine {engine}"
        )
    # What a package says is int8 in one of two ways, or that it has nothing but floats.
    activations = "exact" if precision == "exact" else None
    return PackageEngine.load(
        path, RuntimeOptions(num_threads or physical_cores(), activations), say
    )


def why_torch(source: ModelSource, engine: str) -> str | None:
    """Why a checkpoint runs in torch, None if it runs natively.

    Raises:
        ConfigError: native was asked for and cannot run it, or there is no engine of that name.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; one of {', '.join(ENGINES)} is needed")
    if engine == "torch":
        return "--engine torch"
    if engine == "auto" and source.quant is None:
        return "not a quantized checkpoint; --engine native rounds floats to float16"
    reason = why_not_native(source)
    if reason is not None and engine == "native":
        raise ConfigError(f"{source.path}: {reason}; use --engine torch")
    return reason


def why_not_native(source: ModelSource) -> str | None:
    """Why the native engine cannot run a checkpoint, None if it can."""
    try:
        from bcquant.runtime.native_weights import refusal
    except KernelError as error:  # the extension is not built
        return str(error)
    return refusal(source)


def check_threads(num_threads: int | None) -> None:
    """Refuse a number of threads that no pool has. ConfigError: below 1 or above 256."""
    if num_threads is not None and not 1 <= num_threads <= 256:
        raise ConfigError(f"--threads is {num_threads}; 1 .. 256 is needed")


def physical_cores(root: Path = Path("/")) -> int:
    """Cores that this process may run on, each counted once however many threads it has.

    Args:
        root: where `sys` is mounted.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:  # this kernel does not say
            cores.add(str(cpu))
    return max(1, min(len(cores), 256))
