"""llama.cpp's own rounding of a GGUF file to Q4_0, as a process of its own: SOURCE TARGET."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as llama


def main() -> None:
    params = llama.llama_model_quantize_default_params()
    params.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    source, target = (name.encode() for name in sys.argv[1:3])
    if status := llama.llama_model_quantize(source, target, ctypes.byref(params)):
        raise SystemExit(f"llama_model_quantize gave {status}")


if __name__ == "__main__":
    main()
