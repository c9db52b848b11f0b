"""Scratch sizes where a size_t has 32 bits: what cannot be addressed is refused, not wrapped."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
OK, BAD_SHAPE = 0, 2  # bcq/status.h
_ASK = """
#include "bcq/decoder.h"

extern "C" {
static size_t bytes;
__attribute__((export_name("decoder"))) int decoder(long long tokens, long long width) {
  bcq_decoder d = {};
  d.hidden = width, d.intermediate = width;
  d.num_heads = 1, d.num_kv_heads = 1, d.head_dim = 64;
  return bcq_decoder_scratch(&d, tokens, &bytes);
}
__attribute__((export_name("linear"))) int linear(long long tokens, long long width) {
  return bcq_linear_scratch(tokens, width, &bytes);
}
__attribute__((export_name("bytes_of"))) unsigned bytes_of(void) { return bytes; }
}
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """name -> function of a module for wasm32 with the two size functions alone."""
    for program in ("clang++-22", "wasm-ld-22"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: sh csrc/tests/cross/install_toolchains.sh")
    if not Path("/usr/include/wasm32-wasi/stdlib.h").exists():
        pytest.skip("wasi-libc is not installed: sh csrc/tests/cross/install_toolchains.sh")
    if importlib.util.find_spec("wasmtime") is None:
        pytest.skip("the Python package wasmtime is not installed: pip install wasmtime")
    import wasmtime

    folder = tmp_path_factory.mktemp("scratch")
    (folder / "ask.cpp").write_text(_ASK)
    flags = ["--target=wasm32-wasi", "--sysroot=/usr", "-Wno-deprecated", "-std=c++17", "-O1"]
    flags += ["-fno-exceptions", "-fno-rtti", "-ffunction-sections", f"-I{CSRC / 'include'}"]
    flags += [f"-I{CSRC}", "-nostdlib", "--no-wasm-opt", "-Wl,--no-entry,--gc-sections"]
    sources = [folder / "ask.cpp", CSRC / "core/decoder.cpp", CSRC / "core/linear.cpp"]
    words = ["clang++-22", *flags, *map(str, sources), "-o", str(folder / "ask.wasm")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    store = wasmtime.Store()
    module = wasmtime.Module.from_file(store.engine, str(folder / "ask.wasm"))
    exports = wasmtime.Instance(store, module, []).exports(store)
    return lambda name, *numbers: exports[name](store, *numbers)


def test_sizes_that_fit_are_told(asked: Callable[..., int]) -> None:
    assert asked("decoder", 1, 64) == OK
    small = asked("bytes_of")
    assert asked("decoder", 512, 4096) == OK
    assert small < 512 * 3 * 4096 * 4 < asked("bytes_of")  # three arrays of floats, and more
    assert asked("linear", 512, 4096) == OK


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [
        ("decoder", 1 << 14, 1 << 14),  # three arrays of 2^30 bytes
        ("decoder", 1 << 24, 1 << 24),  # a multiple of 2^32: wrapped it would look small
        ("linear", 1 << 16, 1 << 16),
        ("linear", 1 << 28, 1 << 28),
    ],
)
def test_sizes_beyond_32_bits_are_refused(
    asked: Callable[..., int], name: str, tokens: int, width: int
) -> None:
    assert asked(name, tokens, width) == BAD_SHAPE
