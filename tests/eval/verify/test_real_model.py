"""The limits hold on a trained model, not only on random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bcquant.calib.dataset import builtin_text
from bcquant.eval.verify.run import VerifyOptions, verify

pytestmark = [pytest.mark.judge, pytest.mark.slow]


def test_gguf_of_the_demo_model_is_what_llama_cpp_computes(demo_model: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    options = VerifyOptions(builtin_text("evaluation"), max_tokens=512, new_tokens=16)
    found = verify(demo_model, demo_model, options, lambda what, done, total: None)
    figures: dict[str, Any] = {check.name: check.figures for check in found.checks}
    assert found.passed, [check.problem for check in found.checks]
    assert (found.thresholds.kind, figures["weights"]["different"]) == ("int8", 0)
    assert figures["tokens"]["texts"] > 100  # the vocabulary's own special tokens are among them
    # Q4_1 with int8 activations: measured 0.0033 nats over 2048 tokens
    assert 1e-4 < figures["logits"]["kl_mean"] < 0.01
