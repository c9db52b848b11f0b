"""llama.cpp's own rounding of a GGUF file to Q4_0, as a process of its own: SOURCE TARGET."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as llama


def quantize_q4_0(source: str, target: str, allows_blocks: bool = False) -> None:
    """llama.cpp's Q4_0 file of a GGUF.

    Args:
        allows_blocks: the source may hold block types, which are rounded again.
    Raises:
        RuntimeError: llama.cpp refused.
    """
    params = llama.llama_model_quantize_default_params()
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = allows_blocks
    status = llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status:
        raise RuntimeError(f"llama_model_quantize gave {status}")


if __name__ == "__main__":
    quantize_q4_0(*sys.argv[1:3])
