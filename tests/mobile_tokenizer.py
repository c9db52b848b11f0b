"""Builds the tokenizers of the runtime and calls them from Python."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

IntArray = npt.NDArray[np.integer]
ROOT = Path(__file__).parents[1]
NAMES = ("byte_level", "characters", "error", "memory", "nfc", "piece_text", "pre_tokenizer",
         "rank_merges", "sentencepiece", "stream", "token_section", "token_tables", "tokenizer",
         "unicode")  # fmt: skip
SOURCES = [ROOT / "mobile" / "runtime" / f"{name}.cpp" for name in NAMES]
BATCH = ROOT / "mobile" / "tests" / "tokenizer_batch.cpp"
FLAGS = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
FLAGS += ["-fno-exceptions", "-fno-rtti"]  # as the phone runtime is built
INCLUDES = [f"-I{ROOT / folder}" for folder in ("mobile", "mobile/include", "csrc/include")]
ADDS_FRAME, PARSES_SPECIAL = 1, 2
_MAX_IDS = 400_000


def build(folder: Path, sources: Sequence[Path], compile_with: list[str], link: list[str]) -> Path:
    """Compile with g++ but link with gcc: an undefined libstdc++ symbol fails the link."""
    for compiler in ("g++", "gcc"):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, made: Path) -> None:
        run(["g++", *FLAGS, *compile_with, *INCLUDES, "-c", str(source), "-o", str(made)])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    made = folder / "made.so"
    run(["gcc", "-pthread", *compile_with, *link, *map(str, objects), "-o", str(made)])
    return made


def run(command: list[str]) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class NativeTokenizer:
    """bcq_tokenizer_* and bcq_stream_* over one section."""

    def __init__(self, library: ctypes.CDLL, section: bytes) -> None:
        self._library, self._section = library, section  # the C side points into the section
        self._handle = ctypes.c_void_p()
        self._ids = (ctypes.c_int32 * _MAX_IDS)()
        self._num = ctypes.c_size_t()
        library.bcq_error_text.restype = ctypes.c_char_p
        size = ctypes.c_size_t(len(section))
        status = library.bcq_tokenizer_create(section, size, ctypes.byref(self._handle))
        assert status == 0, library.bcq_error_text()

    def encode(self, data: bytes, flags: int, capacity: int = _MAX_IDS) -> list[int]:
        """The ids that were written; `num_ids` is how many there are."""
        status = self._library.bcq_tokenizer_encode(
            self._handle, data, ctypes.c_size_t(len(data)), flags, self._ids,
            ctypes.c_size_t(capacity), ctypes.byref(self._num),
        )  # fmt: skip
        assert status == 0, self._library.bcq_error_text()
        return self._ids[: min(self._num.value, capacity)]

    def encode_many(self, texts: Sequence[bytes], flags: int) -> tuple[IntArray, IntArray]:
        """The ids of all texts, one after the other, and how many each text has."""
        begins = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=begins[1:])
        # A text has at most three ids a byte: the bytes of U+FFFD.
        ids = np.empty(3 * int(begins[-1]) + 2 * len(texts), np.int32)
        num_ids = np.empty(len(texts), np.int64)
        blob, size = b"".join(texts), ctypes.c_int64
        status = self._library.bcq_test_encode_many(
            self._handle, blob, begins.ctypes.data_as(ctypes.c_void_p), size(len(texts)), flags,
            ids.ctypes.data_as(ctypes.c_void_p), size(ids.size),
            num_ids.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert status == 0, self._library.bcq_error_text()
        return ids[: num_ids.sum()], num_ids

    @property
    def num_ids(self) -> int:
        """Of the last text."""
        return self._num.value

    def token(self, token_id: int) -> bytes:
        """Bytes of one token."""
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        status = self._library.bcq_tokenizer_token(
            self._handle, token_id, ctypes.byref(text), ctypes.byref(size)
        )
        assert status == 0
        return ctypes.string_at(text, size.value) if size.value else b""

    def stream_pieces(self, ids: Sequence[int], is_continuation: bool) -> list[bytes]:
        """What each id gives, then what the end gives."""
        library, stream = self._library, ctypes.c_void_p()
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        out = ctypes.byref(text), ctypes.byref(size)
        assert library.bcq_stream_create(self._handle, is_continuation, ctypes.byref(stream)) == 0
        pieces = []
        for token_id in ids:
            assert library.bcq_stream_push(stream, token_id, *out) == 0
            pieces.append(ctypes.string_at(text, size.value) if size.value else b"")
        assert library.bcq_stream_end(stream, *out) == 0
        pieces.append(ctypes.string_at(text, size.value) if size.value else b"")
        library.bcq_stream_destroy(stream)
        return pieces

    def close(self) -> None:
        """Free the C side."""
        self._library.bcq_tokenizer_destroy(self._handle)
