"""The shared library behind runtime_native.py: its functions, structs, statuses and ownership.

The contract is mobile/include/bcq/runtime.h.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from types import TracebackType
from typing import Any, Self

from bcquant.errors import BcquantError, CheckpointError, KernelError
from bcquant.kernels.shared_library import load_library

MODULE = "bcquant.kernels._runtime"
_BAD_BLOB = 6

# Types of arguments.
P, I32, I64, SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bcq_package_open": (ctypes.c_char_p, I32, P),
    "bcq_package_info": (P, P),
    "bcq_package_section": (P, I32, P, P),
    "bcq_plan_model": (P, P, I64, P),
    "bcq_model_create": (P, P, P),
    "bcq_session_create": (P, I64, P),
    "bcq_session_truncate": (P, I64),
    "bcq_session_append": (P, P, I64, P),
    "bcq_session_score": (P, P, I64, P),
    "bcq_tokenizer_create": (P, SIZE, P),
    "bcq_tokenizer_encode": (P, ctypes.c_char_p, SIZE, I32, P, SIZE, P),
    "bcq_tokenizer_token": (P, I32, P, P),
    "bcq_stream_create": (P, I32, P),
    "bcq_stream_push": (P, I32, P, P),
    "bcq_stream_end": (P, P, P),
}
_DESTROYERS = ("bcq_package_close", "bcq_model_destroy", "bcq_session_destroy",
               "bcq_tokenizer_destroy", "bcq_stream_destroy")  # fmt: skip


class InfoStruct(ctypes.Structure):
    """bcq_model_info."""

    _fields_ = [
        *((name, I64) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "max_positions",
        )),
        ("eps", ctypes.c_float),
        *((name, I32) for name in (
            "is_alibi", "ties_head", "activations", "bos", "pad", "num_eos",
        )),
        ("eos", I32 * 8),
    ]  # fmt: skip


class OptionsStruct(ctypes.Structure):
    """bcq_options."""

    _fields_ = [
        ("num_threads", I32), ("activations", I32), ("kv_type", I32),
        ("prefill_tokens", I32), ("budget_bytes", ctypes.c_uint64), ("tier", ctypes.c_char_p),
    ]  # fmt: skip


class PlanStruct(ctypes.Structure):
    """bcq_plan."""

    _fields_ = [
        (f"{name}_bytes", ctypes.c_uint64) for name in ("weight", "table", "scratch", "kv", "total")
    ]


class Handle:
    """An object of the library: destroyed once, after everything that was opened from it."""

    def __init__(self, pointer: int, destroyer: str, owner: Handle | None) -> None:
        self._pointer = pointer
        self._opened: weakref.WeakSet[Handle] = weakref.WeakSet()
        # The owner stands in the arguments, so that it lives until this is destroyed.
        self._destroy = weakref.finalize(self, _destroy, destroyer, pointer, owner)
        if owner is not None:
            owner._opened.add(self)

    @property
    def open_pointer(self) -> int:
        """The pointer; KernelError: it was closed."""
        if not self._destroy.alive:
            raise KernelError(f"this {type(self).__name__} was closed; open it again")
        return self._pointer

    def close(self) -> None:
        """Destroy it, after what was opened from it; closing twice is fine."""
        for each in list(self._opened):
            each.close()
        self._destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check(status: int, where: str, wrong: type[BcquantError] = KernelError) -> None:
    """Raise what a status means, in the library's own words.

    Args:
        where: what it happened to; left out where the library names it.
        wrong: raised for every status but BCQ_OK, and BCQ_BAD_BLOB, which is a CheckpointError.
    """
    if status != 0:
        said: bytes = library().bcq_error_text()
        kind = CheckpointError if status == _BAD_BLOB else wrong
        problem = said.decode("utf-8", "replace").removesuffix(".")
        raise kind(problem if where in problem else f"{where}: {problem}")


def pointer_of(found: ctypes.c_void_p) -> int:
    """The address that a call put there."""
    assert found.value is not None, "BCQ_OK comes with an object"
    return found.value


def _destroy(name: str, pointer: int, owner: Handle | None) -> None:
    getattr(library(), name)(pointer)


@cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions typed; KernelError: it is not built."""
    loaded = load_library(MODULE)
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, I32
    for name in _DESTROYERS:
        function = getattr(loaded, name)
        function.argtypes, function.restype = (P,), None
    loaded.bcq_session_cancel.argtypes, loaded.bcq_session_cancel.restype = (P,), None
    for name, result in (
        ("bcq_error_text", ctypes.c_char_p),
        ("bcq_model_tier", ctypes.c_char_p),
        ("bcq_session_position", I64),
    ):
        function = getattr(loaded, name)
        function.argtypes = () if name == "bcq_error_text" else (P,)
        function.restype = result
    return loaded
