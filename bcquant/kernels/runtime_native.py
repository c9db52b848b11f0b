"""The runtime for apps (mobile/include/bcq/runtime.h) through ctypes: packages run as on a phone.

with open_package("model.bcq") as package, package.model() as model, model.session(512) as session:
    ids = package.tokenizer().encode("Hello")
    logits = session.append(ids)

Whatever is opened from another object is closed with it, and keeps it alive.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcquant.errors import CheckpointError, KernelError
from bcquant.kernels.runtime_library import (
    SIZE,
    Handle,
    InfoStruct,
    P,
    PlanStruct,
    check,
    library,
    pointer_of,
)
from bcquant.kernels.runtime_values import (
    MemoryPlan,
    ModelInfo,
    RuntimeOptions,
    info_of,
    options_struct,
    plan_of,
)

__all__ = [
    "MemoryPlan",
    "Model",
    "ModelInfo",
    "Package",
    "RuntimeOptions",
    "Session",
    "Stream",
    "Tokenizer",
    "open_package",
]

F32Array = npt.NDArray[np.float32]

_CHECK_STRUCTURE, _CHECK_ALL = 0, 1
_ADD_SPECIAL, _PARSE_SPECIAL = 1, 2
_TOKENIZER = 64  # kind of a section


def open_package(path: str | Path, checks_digests: bool = True) -> Package:
    """Open and map a package, the first file of several.

    Args:
        checks_digests: compare every section with its SHA-256, which reads all of it.
    Raises:
        CheckpointError: missing, damaged, no package, or of a version of the future.
        KernelError: the extension is not built.
    """
    found = P()
    depth = _CHECK_ALL if checks_digests else _CHECK_STRUCTURE
    status = library().bcq_package_open(os.fsencode(path), depth, ctypes.byref(found))
    check(status, str(path), CheckpointError)
    return Package(path, pointer_of(found))


class Package(Handle):
    """A mapped package, from `open_package`.

    Attributes:
        path: of the first file.
        info: what the model is.
    """

    def __init__(self, path: str | Path, pointer: int) -> None:
        super().__init__(pointer, "bcq_package_close", None)
        found = InfoStruct()
        check(library().bcq_package_info(pointer, ctypes.byref(found)), str(path))
        self.path, self.info = str(path), info_of(found)

    def section(self, kind: int) -> bytes | None:
        """A section of text by its kind, 64 .. 69; None where there is none.

        Raises:
            KernelError: another kind.
        """
        data, size = self._section(kind)
        return None if data is None else ctypes.string_at(data, size)

    def tokenizer(self) -> Tokenizer:
        """Texts to ids and back.

        Raises:
            CheckpointError: the package has none, or a damaged one.
        """
        data, size = self._section(_TOKENIZER)
        if data is None:
            raise CheckpointError(f"{self.path}: it has no tokenizer; export the model with one")
        found = P()
        status = library().bcq_tokenizer_create(data, size, ctypes.byref(found))
        check(status, self.path, CheckpointError)
        return Tokenizer(self, pointer_of(found))

    def plan(self, context: int, options: RuntimeOptions | None = None) -> MemoryPlan:
        """What a model with a session of `context` tokens takes.

        Raises:
            KernelError: an option or the context is out of range, or the budget is too small.
            CheckpointError: a weight is damaged.
        """
        plan = PlanStruct()
        chosen = options_struct(options or RuntimeOptions())
        status = library().bcq_plan_model(
            self.open_pointer, ctypes.byref(chosen), context, ctypes.byref(plan)
        )
        check(status, self.path)
        return plan_of(plan)

    def model(self, options: RuntimeOptions | None = None) -> Model:
        """Check every weight and prepare to compute; weights stay where they are.

        Raises:
            KernelError: as `plan`, or the tier is unknown or not of this CPU.
            CheckpointError: a weight is damaged.
        """
        found = P()
        chosen = options_struct(options or RuntimeOptions())
        status = library().bcq_model_create(
            self.open_pointer, ctypes.byref(chosen), ctypes.byref(found)
        )
        check(status, self.path)
        return Model(self, pointer_of(found))

    def _section(self, kind: int) -> tuple[int | None, int]:
        data, size = P(), SIZE()
        status = library().bcq_package_section(
            self.open_pointer, kind, ctypes.byref(data), ctypes.byref(size)
        )
        check(status, self.path)
        return data.value, size.value


class Model(Handle):
    """Weights ready to compute, from `Package.model`; any number of sessions share it.

    Attributes:
        info: of the package.
    """

    def __init__(self, package: Package, pointer: int) -> None:
        super().__init__(pointer, "bcq_model_destroy", package)
        self.info, self.path = package.info, package.path

    @property
    def tier(self) -> str:
        """The kernel tier that computes."""
        name: bytes = library().bcq_model_tier(self.open_pointer)
        return name.decode()

    def session(self, context: int) -> Session:
        """Caches for `context` tokens.

        Raises:
            KernelError: more than the model's positions, or no memory.
        """
        found = P()
        check(
            library().bcq_session_create(self.open_pointer, context, ctypes.byref(found)), self.path
        )
        return Session(self, pointer_of(found))


class Session(Handle):
    """One text in a model's caches, from `Model.session`; for one thread at a time."""

    def __init__(self, model: Model, pointer: int) -> None:
        super().__init__(pointer, "bcq_session_destroy", model)
        self._vocab_size, self._path = model.info.vocab_size, model.path

    @property
    def position(self) -> int:
        """Tokens held."""
        return int(library().bcq_session_position(self.open_pointer))

    def append(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> F32Array:
        """Append tokens; a copy of the logits (V,) after the last.

        Raises:
            KernelError: no id or one outside the vocabulary, no room, or it was cancelled; the
                session then holds what it held.
        """
        given, logits = self._given(ids), P()
        status = library().bcq_session_append(
            self.open_pointer, given.ctypes.data, len(given), ctypes.byref(logits)
        )
        check(status, self._path)
        seen = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(seen, (self._vocab_size,)).copy()

    def score(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> float:
        """Append tokens; the sum of -log p (nats) of each after the first, given all before it.

        Raises:
            KernelError: as `append`, or fewer than two ids.
        """
        given, nll = self._given(ids), ctypes.c_double()
        status = library().bcq_session_score(
            self.open_pointer, given.ctypes.data, len(given), ctypes.byref(nll)
        )
        check(status, self._path)
        return nll.value

    def truncate(self, position: int) -> None:
        """Forget every token from `position` on. KernelError: beyond what is held."""
        check(library().bcq_session_truncate(self.open_pointer, position), self._path)

    def cancel(self) -> None:
        """From any thread: the append that runs, or the next one, ends with a KernelError."""
        library().bcq_session_cancel(self.open_pointer)

    def _given(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        wide = np.asarray(ids, np.int64)
        if wide.ndim != 1 or bool(((wide < 0) | (wide >= self._vocab_size)).any()):
            raise KernelError(f"{self._path}: ids of 0 .. {self._vocab_size - 1} in a row needed")
        return wide.astype(np.int32)


class Tokenizer(Handle):
    """A package's tokenizer, from `Package.tokenizer`; threads may share it."""

    def __init__(self, package: Package, pointer: int) -> None:
        super().__init__(pointer, "bcq_tokenizer_destroy", package)
        self._path = package.path

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text; see `bcquant.runtime.tokenizer.Tokenizer.encode`.

        Raises:
            KernelError: the text is too long, or there is no memory.
        """
        data = text.encode("utf-8", "surrogatepass")  # the library replaces what is no character
        flags = _ADD_SPECIAL * add_special | _PARSE_SPECIAL * parse_special
        ids = np.empty(len(data) + 8, np.int32)
        num = self._encode(data, flags, ids)
        if num > len(ids):  # more than an id a byte, as for spaces that are put in
            ids = np.empty(num, np.int32)
            num = self._encode(data, flags, ids)
        found: list[int] = ids[:num].tolist()
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token in a text, maybe part of a character; none for a control token."""
        data, size = P(), SIZE()
        status = library().bcq_tokenizer_token(
            self.open_pointer, token_id, ctypes.byref(data), ctypes.byref(size)
        )
        check(status, self._path)
        return ctypes.string_at(data, size.value) if data.value else b""

    def stream(self, is_continuation: bool = True) -> Stream:
        """A decoder for ids that come one by one.

        Args:
            is_continuation: the text goes on after a prompt, so a leading space is kept.
        """
        found = P()
        status = library().bcq_stream_create(
            self.open_pointer, is_continuation, ctypes.byref(found)
        )
        check(status, self._path)
        return Stream(self, pointer_of(found))

    def _encode(self, data: bytes, flags: int, ids: npt.NDArray[np.int32]) -> int:
        num = SIZE()
        status = library().bcq_tokenizer_encode(
            self.open_pointer, data, len(data), flags, ids.ctypes.data, len(ids), ctypes.byref(num)
        )
        check(status, self._path)
        return num.value


class Stream(Handle):
    """Ids in, text out, whole characters only, from `Tokenizer.stream`."""

    def __init__(self, tokenizer: Tokenizer, pointer: int) -> None:
        super().__init__(pointer, "bcq_stream_destroy", tokenizer)

    def push(self, token_id: int) -> str:
        """Text that became complete with this id."""
        text, size = P(), SIZE()
        status = library().bcq_stream_push(
            self.open_pointer, token_id, ctypes.byref(text), ctypes.byref(size)
        )
        return _text(status, text, size)

    def flush(self) -> str:
        """What is held back, as U+FFFD."""
        text, size = P(), SIZE()
        status = library().bcq_stream_end(self.open_pointer, ctypes.byref(text), ctypes.byref(size))
        return _text(status, text, size)


def _text(status: int, text: ctypes.c_void_p, size: ctypes.c_size_t) -> str:
    check(status, "the stream")
    return ctypes.string_at(text, size.value).decode("utf-8") if size.value else ""
