"""Exports that are right pass, and what is measured on them is noise; every program is a judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bcquant.eval.verify.backend import choose_backend
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

pytestmark = pytest.mark.judge
pytest.importorskip("onnxruntime", reason="onnxruntime, which runs the exports, is not installed")
pytest.importorskip("llama_cpp", reason="llama-cpp-python, which runs GGUF, is not installed")

Fixture = Callable[..., Any]
W8A8 = QuantFormat(8, -1, True, "int8_token")


def check(certificate: Any, name: str) -> Any:
    return next(check for check in certificate.checks if check.name == name)


@pytest.mark.parametrize(
    ("family", "target", "fmt", "words", "kind"),
    [
        ("llama", None, None, ("onnx",), "float32"),
        ("llama", "v1", QuantFormat(4, 32), ("onnx",), "int8"),
        ("qwen2", "compressed-tensors", QuantFormat(4, 32, False), ("onnx",), "int8"),
        ("qwen3", "v2", QuantFormat(8, -1), ("onnx", "--accuracy-level", "0"), "float32"),
        (
            "llama_bias",
            "compressed-tensors",
            QuantFormat(3, 32),
            ("onnx", "--variant", "std"),
            "int8",
        ),
        ("mistral", "int-quantized", W8A8, ("onnx",), "int8_token"),
        ("llama", "v1", QuantFormat(4, 32), ("onnx", "--float16"), "int8"),
        ("llama", None, None, ("onnx", "--float16"), "float16"),
        ("qwen2", "v1", QuantFormat(4, 32), ("gguf",), "int8"),
        ("baichuan", "v2", QuantFormat(8, -1), ("gguf",), "int8"),
        ("llama", "compressed-tensors", QuantFormat(4, 64, False), ("gguf",), "int8"),
        ("llama", None, None, ("gguf",), "float16"),
    ],
)
def test_export_passes(
    family: str,
    target: str | None,
    fmt: QuantFormat | None,
    words: tuple[str, ...],
    kind: str,
    make_source: Fixture,
    make_export: Fixture,
    run_verify: Fixture,
) -> None:
    source = make_source(family, target, fmt)
    found = run_verify(source, make_export(source, *words))
    assert found.passed, [entry.problem for entry in found.checks]
    assert (found.thresholds.kind, found.diverges) == (kind, None)
    assert check(found, "weights").figures["different"] == 0
    assert ("rounding" in [entry.name for entry in found.checks]) == (kind == "int8_token")
    if kind.startswith("int8") and words[0] == "onnx":
        limit = check(found, "graph").limits["relative_error"]
        assert limit == found.graph_thresholds.max_error


def test_bfloat16_and_float32_checkpoints_pass_in_llama_cpp(
    make_source: Fixture, make_export: Fixture, run_verify: Fixture
) -> None:
    for dtype, kind in (("BF16", "bfloat16"), ("F32", "float32")):
        source = make_source("llama", None, dtype=dtype)
        found = run_verify(source, make_export(source, "gguf"))
        assert (found.passed, found.thresholds.kind) == (True, kind)


def test_rounded_embedding_passes_with_its_error_accepted(
    make_source: Fixture, make_export: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    export = make_export(source, "onnx", "--embedding-bits", "8", "--allow-lossy")
    found = run_verify(source, export, max_weight_error=0.01)
    weights = check(found, "weights")
    # 8 bits over about 4 standard deviations: steps of 4 / 127, an error of 0.29 steps
    assert weights.passed and 1e-3 < weights.figures["error"] < 0.01
    assert weights.figures["worst"] in ("model.embed_tokens.weight", "lm_head.weight")
    assert not check(run_verify(source, export), "weights").passed


def test_genai_export_passes(
    make_source: Fixture, make_export: Fixture, run_verify: Fixture
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    source = make_source()
    found = run_verify(source, make_export(source, "onnx", "--target", "genai"))
    assert found.passed, [entry.problem for entry in found.checks]
    assert found.backend == "onnxruntime_genai"
    assert {"graph", "greedy"} <= {entry.name for entry in found.checks}


def test_checkpoint_folder_passes_in_transformers(
    make_source: Fixture, run_verify: Fixture
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    source = make_source("llama", None)
    found = run_verify(source, source)
    assert found.passed, [entry.problem for entry in found.checks]
    assert (found.backend, found.thresholds.kind) == ("transformers", "float32")


def test_core_reads_a_gguf_back_exactly(
    make_source: Fixture, make_export: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    found = run_verify(source, make_export(source, "gguf"), backend="core")
    # The same float32 program on the same float32 weights: not a bit differs.
    assert check(found, "logits").figures["max_error"] == 0


@pytest.mark.parametrize(
    ("words", "bound"),
    [
        (("onnx",), 5e-6),  # sums of at most 128 products in another order; measured 8e-7
        (("gguf",), 5e-6),
    ],
)
def test_hidden_states_are_those_of_the_source(
    words: tuple[str, ...], bound: float, make_source: Fixture, make_export: Fixture
) -> None:
    source_path = make_source("llama", None, dtype="F32")
    export_path = make_export(source_path, *words)
    ids = list(range(5, 30))
    source = CoreBackend(open_model(source_path))
    export = choose_backend(export_path, None).open(export_path, 64)
    ours, theirs = source.hidden(ids), export.hidden(ids)
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert np.linalg.norm(other - mine) / np.linalg.norm(mine) < bound
    after = export.logits(ids)  # looking inside changes nothing
    assert np.array_equal(after, export.logits(ids))
    source.close()
    export.close()
