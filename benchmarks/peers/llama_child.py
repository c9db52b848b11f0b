"""llama.cpp as a process that loads once and times what it is asked; runs under its own Python.

Reads JSON objects on stdin, one a line, and answers each with one on stdout:
    {"do": "quantize", "source": FILE, "target": FILE}          -> {}
    {"do": "load", "path": FILE, "num_tokens": N}               -> {"version", "system", ...}
    {"do": "round", "prompt": IDS, "next": IDS, "threads": N}   -> {"prefill_s", "decode_s"}
    {"do": "choices", "ids": IDS, "threads": N}                 -> {"ids"}
A round forgets everything, appends the prompt as one batch, then `next` one by one; logits are
computed for the last token only, and nothing is sampled. Choices are the likeliest next token after
each of `ids`. Imports nothing of bcquant.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as llama
from llama_cpp.llama_cpp import llama_log_callback
from llama_quantize_child import quantize_q4_0


class Model:
    """One loaded model and its context."""

    def __init__(self) -> None:
        self.model: Any = None
        self.context: Any = None

    def do_quantize(self, source: str, target: str) -> dict[str, Any]:
        quantize_q4_0(source, target, allows_blocks=True)
        return {}

    def do_load(self, path: str, num_tokens: int) -> dict[str, Any]:
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama.llama_model_load_from_file(path.encode(), model_params)
        params = llama.llama_context_default_params()
        params.n_ctx = num_tokens
        params.n_batch = params.n_ubatch = 512
        self.context = self.model and llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError(f"{path} could not be loaded")
        vocab = llama.llama_model_get_vocab(self.model)
        self.num_vocab = llama.llama_vocab_n_tokens(vocab)
        return {
            "version": llama.__version__,
            "system": llama.llama_print_system_info().decode(),
            "model_bytes": llama.llama_model_size(self.model),
        }

    def do_round(self, prompt: list[int], next: list[int], threads: int) -> dict[str, Any]:
        llama.llama_set_n_threads(self.context, threads, threads)
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        start = time.perf_counter()
        self._append(prompt)
        middle = time.perf_counter()
        for token in next:
            self._append([token])
        stop = time.perf_counter()
        return {"prefill_s": middle - start, "decode_s": stop - middle}

    def do_choices(self, ids: list[int], threads: int) -> dict[str, Any]:
        llama.llama_set_n_threads(self.context, threads, threads)
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        chosen = []
        for token in ids:
            self._append([token])
            logits = llama.llama_get_logits_ith(self.context, -1)[: self.num_vocab]
            chosen.append(max(range(self.num_vocab), key=logits.__getitem__))
        return {"ids": chosen}

    def _append(self, ids: list[int]) -> None:
        tokens = (llama.llama_token * len(ids))(*ids)
        status = llama.llama_decode(self.context, llama.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode of {len(ids)} tokens gave {status}")
        llama.llama_synchronize(self.context)


@llama_log_callback
def _silence(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp says a hundred lines a model."""


def main() -> None:
    llama.llama_log_set(_silence, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = Model()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(model, f"do_{request.pop('do')}")(**request)
        except (RuntimeError, TypeError, ValueError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
