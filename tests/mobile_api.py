"""The C API of mobile/include/bcq/runtime.h through ctypes, as tests use it."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]

OK, BAD_ARGUMENT, BAD_SHAPE, UNSUPPORTED, UNKNOWN_TIER, TIER_NOT_HERE = range(6)
BAD_BLOB, OUT_OF_MEMORY, CANCELLED = 6, 7, 8
STRUCTURE, ALL = 0, 1
KV_F32, KV_F16, KV_INT8 = 0, 1, 2


class Info(c.Structure):
    """bcq_model_info."""

    _fields_ = [
        *((name, c.c_int64) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
            "num_kv_heads", "head_dim", "max_positions",
        )),
        ("eps", c.c_float),
        *((name, c.c_int32) for name in (
            "is_alibi", "ties_head", "activations", "bos", "pad", "num_eos",
        )),
        ("eos", c.c_int32 * 8),
    ]  # fmt: skip


class Options(c.Structure):
    """bcq_options."""

    _fields_ = [
        ("num_threads", c.c_int32), ("activations", c.c_int32), ("kv_type", c.c_int32),
        ("prefill_tokens", c.c_int32), ("budget_bytes", c.c_uint64), ("tier", c.c_char_p),
    ]  # fmt: skip


class Plan(c.Structure):
    """bcq_plan."""

    _fields_ = [
        (f"{name}_bytes", c.c_uint64) for name in ("weight", "table", "scratch", "kv", "total")
    ]


class RuntimeFailure(Exception):
    """A call that did not return BCQ_OK."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text}")
        self.status, self.text = status, text


def options(
    num_threads: int = 1,
    activations: int = -1,
    kv_type: int = KV_F16,
    prefill_tokens: int = 0,
    budget_bytes: int = 0,
    tier: str | None = None,
) -> Options:
    """Options with the defaults of these tests: one thread, float16 caches."""
    name = None if tier is None else tier.encode()
    return Options(num_threads, activations, kv_type, prefill_tokens, budget_bytes, name)


class Runtime:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self.lib = c.CDLL(str(path))
        self.lib.bcq_error_text.restype = c.c_char_p
        self.lib.bcq_model_tier.restype = c.c_char_p
        self.lib.bcq_session_position.restype = c.c_int64
        self._memory_in_use = self.lib._ZN3bcq13memory_in_useEv
        self._memory_in_use.restype = c.c_uint64

    def error_text(self) -> str:
        text: bytes = self.lib.bcq_error_text()
        return text.decode()

    def check(self, status: int) -> None:
        if status != OK:
            raise RuntimeFailure(status, self.error_text())

    def memory_in_use(self) -> int:
        return int(self._memory_in_use())

    def open(self, path: Path, check: int = ALL) -> Package:
        handle = c.c_void_p()
        self.check(self.lib.bcq_package_open(str(path).encode(), check, c.byref(handle)))
        return Package(self, handle)

    def open_memory(self, shards: Sequence[bytes], check: int = ALL) -> Package:
        buffers = [np.frombuffer(shard, np.uint8) for shard in shards]
        kept = [np.zeros(len(b) // 4 + 1, np.int32).view(np.uint8) for b in buffers]  # aligned
        for room, data in zip(kept, buffers, strict=True):
            room[: len(data)] = data
        pointers = (c.c_void_p * len(kept))(*(room.ctypes.data for room in kept))
        sizes = (c.c_size_t * len(kept))(*(len(data) for data in buffers))
        handle = c.c_void_p()
        self.check(
            self.lib.bcq_package_open_memory(pointers, sizes, len(kept), check, c.byref(handle))
        )
        package = Package(self, handle)
        package.kept = kept
        return package


class Package:
    """bcq_package."""

    def __init__(self, runtime: Runtime, handle: c.c_void_p) -> None:
        self.runtime, self.handle = runtime, handle
        self.kept: list[npt.NDArray[np.uint8]] = []

    def close(self) -> None:
        self.runtime.lib.bcq_package_close(self.handle)

    def info(self) -> Info:
        info = Info()
        self.runtime.check(self.runtime.lib.bcq_package_info(self.handle, c.byref(info)))
        return info

    def section(self, kind: int) -> bytes | None:
        data, size = c.c_void_p(), c.c_size_t()
        self.runtime.check(
            self.runtime.lib.bcq_package_section(self.handle, kind, c.byref(data), c.byref(size))
        )
        return None if data.value is None else c.string_at(data.value, size.value)

    def verify(self, index: int) -> int:
        """Number of sections; raises if this one is damaged."""
        num = c.c_int32()
        self.runtime.check(self.runtime.lib.bcq_package_verify(self.handle, index, c.byref(num)))
        return num.value

    def plan(self, chosen: Options, context: int) -> Plan:
        plan = Plan()
        self.runtime.check(
            self.runtime.lib.bcq_plan_model(
                self.handle, c.byref(chosen), c.c_int64(context), c.byref(plan)
            )
        )
        return plan

    def model(self, chosen: Options) -> Model:
        handle = c.c_void_p()
        self.runtime.check(
            self.runtime.lib.bcq_model_create(self.handle, c.byref(chosen), c.byref(handle))
        )
        return Model(self, handle)


class Model:
    """bcq_model."""

    def __init__(self, package: Package, handle: c.c_void_p) -> None:
        self.runtime, self.package, self.handle = package.runtime, package, handle
        self.vocab_size = package.info().vocab_size

    def destroy(self) -> None:
        self.runtime.lib.bcq_model_destroy(self.handle)

    def tier(self) -> str:
        name: bytes = self.runtime.lib.bcq_model_tier(self.handle)
        return name.decode()

    def session(self, context: int) -> Session:
        handle = c.c_void_p()
        self.runtime.check(
            self.runtime.lib.bcq_session_create(self.handle, c.c_int64(context), c.byref(handle))
        )
        return Session(self, handle)


class Session:
    """bcq_session."""

    def __init__(self, model: Model, handle: c.c_void_p) -> None:
        self.runtime, self.model, self.handle = model.runtime, model, handle

    def destroy(self) -> None:
        self.runtime.lib.bcq_session_destroy(self.handle)

    @property
    def position(self) -> int:
        return int(self.runtime.lib.bcq_session_position(self.handle))

    def append(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> F32Array:
        """Logits (V,) after the last token, a copy."""
        given = np.ascontiguousarray(ids, np.int32)
        logits = c.POINTER(c.c_float)()
        self.runtime.check(
            self.runtime.lib.bcq_session_append(
                self.handle, c.c_void_p(given.ctypes.data), c.c_int64(len(given)), c.byref(logits)
            )
        )
        return np.ctypeslib.as_array(logits, (self.model.vocab_size,)).copy()

    def truncate(self, position: int) -> None:
        self.runtime.check(self.runtime.lib.bcq_session_truncate(self.handle, c.c_int64(position)))

    def cancel(self) -> None:
        self.runtime.lib.bcq_session_cancel(self.handle)
