"""SmolLM2-135M, quantized, in ONNX Runtime: logits, next tokens and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_run import Session, export, true_logits, worst
from tiny_quantized import NEAREST

from bcquant.calib.dataset import builtin_text
from bcquant.pipeline.quantize import quantize_model
from bcquant.runtime.tokenizer import open_tokenizer

pytestmark = [pytest.mark.judge, pytest.mark.slow]


@pytest.fixture(scope="module")
def quantized(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 rounded to nearest, 4 bits in groups of 64."""
    return quantize_model(demo_model, tmp_path_factory.mktemp("smol") / "q", NEAREST).folder


def kl_divergence(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean KL of the source's next-token distribution from the export's, nats."""

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

    p, q = log_softmax(wanted), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_logits_of_smollm2(quantized: Path, tmp_path: Path) -> None:
    text = builtin_text("evaluation")
    ids = np.array([open_tokenizer(quantized).encode(text)[:200]])
    wanted = true_logits(quantized, ids)
    exact = export(quantized, tmp_path / "exact")
    size = sum(path.stat().st_size for path in exact.iterdir())
    assert size < 125e6  # 57 MB of embedding in float16, 60 MB of 4-bit matrices: 121 MB
    found = Session(exact).prefill(ids)
    # float32 on both sides, 30 layers; measured 1.6e-4 on logits up to 30, and KL 3e-11
    assert worst(found, wanted) < 1e-3
    assert kl_divergence(found, wanted) < 1e-8
    assert np.array_equal(found.argmax(-1), wanted.argmax(-1))
    rounded = Session(export(quantized, tmp_path / "int8", accuracy_level=4)).prefill(ids)
    # int8 inputs of every layer, a scale for each 64 columns: measured 4.5e-3, top-1 94 %
    assert 1e-4 < kl_divergence(rounded, wanted) < 1.5e-2
    assert (rounded.argmax(-1) == wanted.argmax(-1)).mean() > 0.88
