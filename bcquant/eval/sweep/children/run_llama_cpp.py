"""llama.cpp's quantization of a float16 GGUF file; embedding and head stay float16."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

IMPORTS = ("numpy", "llama_cpp")
F16 = 1  # of enum ggml_type


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the GGUF file job["out"]."""
    llama = importlib.import_module("llama_cpp.llama_cpp")
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{job['settings']['type']}")
    params.token_embedding_type = params.output_tensor_type = F16
    params.nthread = job["threads"]
    kept = _imatrix(llama, job["importance"]) if job["importance"] else []
    if kept:
        params.imatrix = ctypes.cast(kept[0], type(params.imatrix))
    status = llama.llama_model_quantize(
        job["model"].encode(), job["out"].encode(), ctypes.byref(params)
    )
    if status:
        raise SystemExit(f"llama_model_quantize gave {status}")
    return {}


def _imatrix(llama: Any, path: str) -> list[Any]:
    """The entries of an importance matrix, ended by an empty one, and the arrays behind them."""
    np = importlib.import_module("numpy")
    arrays = {name: values.astype(np.float32) for name, values in np.load(path).items()}
    entries = (llama.llama_model_imatrix_data * (len(arrays) + 1))()
    for entry, (name, values) in zip(entries, arrays.items()):  # noqa: B905 - entries is longer
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return [entries, arrays]
