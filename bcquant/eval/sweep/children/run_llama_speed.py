"""llama.cpp's tokens per second: a prompt as one batch, then tokens one by one."""

from __future__ import annotations

import ctypes
import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

IMPORTS = ("numpy", "llama_cpp")


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Medians over job["rounds"] after a first one that warms up."""
    np = importlib.import_module("numpy")
    llama = importlib.import_module("llama_cpp.llama_cpp")
    room = job["prompt"] + job["following"]
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(job["model"].encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = room, 512, 512
    context = model and llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"{job['model']}: llama.cpp could not load it")
    llama.llama_set_n_threads(context, job["threads"], job["threads"])
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ids = np.random.default_rng(0).integers(0, vocab, room).tolist()
    prefill, decode = [], []
    for _ in range(1 + job["rounds"]):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.perf_counter()
        _append(llama, context, ids[: job["prompt"]])
        middle = time.perf_counter()
        for token in ids[job["prompt"] :]:
            _append(llama, context, [token])
        prefill.append(job["prompt"] / (middle - start))
        decode.append(job["following"] / (time.perf_counter() - middle))
    return {
        "prefill_tokens_per_s": statistics.median(prefill[1:]),
        "decode_tokens_per_s": statistics.median(decode[1:]),
    }


def _append(llama: Any, context: Any, ids: list[int]) -> None:
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    status = llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids)))
    if status:
        raise SystemExit(f"llama_decode of {len(ids)} tokens gave {status}")
    llama.llama_synchronize(context)
