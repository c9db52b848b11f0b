"""Every family, quantized to 4 bits, through every export: integers equal, verdict pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from factory import FAMILIES

from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge
for package in ("onnxruntime", "onnxruntime_genai", "llama_cpp"):
    pytest.importorskip(package, reason=f"{package}, which runs exports, is not installed")

Fixture = Callable[..., Any]
EXPORTS = {
    "ort": ("onnx",),
    "exact": ("onnx", "--accuracy-level", "0"),
    "std": ("onnx", "--variant", "std"),
    "genai": ("onnx", "--target", "genai"),
    "gguf": ("gguf",),
}
# llama.cpp's llama graph has no sliding window: a context within it needs none.
GGUF_FLAGS = {"mistral": ("--context", "7")}


def shape(family: str, export: str) -> dict[str, Any]:
    """Keys of config.json: rows of 64, of which groups of 32 are whole."""
    found: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    if export == "gguf" and "13b" in family:
        found["num_hidden_layers"] = 40  # by which llama.cpp knows ALiBi
    return found


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(
    family: str,
    export: str,
    make_source: Fixture,
    make_export: Fixture,
    run_verify: Fixture,
) -> None:
    over = shape(family, export)
    # Forty random layers turn llama.cpp's rounding of activations into other tokens: float32 there.
    how = {"target": None, "dtype": "F32"} if "num_hidden_layers" in over else {"target": "v1"}
    source = make_source(family, fmt=QuantFormat(4, 32), **how, **over)
    flags = GGUF_FLAGS.get(family, ()) if export == "gguf" else ()
    limits: dict[str, Any] = {}
    if flags:
        limits = {"max_tokens": 7, "seq_len": 7, "new_tokens": 2, "prompts": ("a",)}
    found = run_verify(source, make_export(source, *EXPORTS[export], *flags), **limits)
    assert found.passed, [check.problem for check in found.checks]
    weights = next(check for check in found.checks if check.name == "weights")
    assert (weights.figures["different"], found.diverges) == (0, None)
