"""llama.cpp from the start of a process to the first token; runs under its own Python.

    llama_first_token.py FILE.gguf IDS THREADS CONTEXT

Prints `ready CLOCK RSS` when Python and llama_cpp are imported, with the system's monotonic clock
in seconds and VmRSS in kB, then `token ID` as soon as the likeliest token after IDS (1,2,3) is
known. It lives on until standard input ends. Imports nothing of bcquant.
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import llama_cpp as llama
import numpy as np
from llama_cpp.llama_cpp import llama_log_callback


@llama_log_callback
def _silence(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp says a hundred lines a model."""


def first_token(path: str, ids: list[int], threads: int, num_context: int) -> int:
    """The likeliest token after `ids`; what was loaded stays.

    Raises:
        SystemExit: the model cannot be loaded or run.
    """
    llama.llama_log_set(_silence, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(path.encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx = num_context
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = model and llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"{path} could not be loaded")
    tokens = (llama.llama_token * len(ids))(*ids)
    if llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
        raise SystemExit("llama_decode failed")
    num_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (num_vocab,))
    return int(logits.argmax())


def main() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8").split("VmRSS:")[1].split()
    print("ready", time.monotonic(), status[0], flush=True)
    path, ids, threads, context = sys.argv[1:]
    token = first_token(path, [int(word) for word in ids.split(",")], int(threads), int(context))
    print("token", token, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
