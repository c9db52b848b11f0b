"""Judge: what `bcquant check` says of transformers, transformers then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from judges.harness import ATOL_F32, judge_logits, kernels, our_decoder
from tiny_awq import store_as_awq
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.loaders._collect import collect_facts
from bcquant.loaders._survey import loaders
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Eager kernels and a temporary folder that the judge leaves are the `gptqmodel` fixture's work.
    pytest.mark.usefixtures("gptqmodel"),
    # Third-party imports announce their own deprecations, and transformers what it overrides.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config` or equivalent:UserWarning"),
]


# The kernel that gptqmodel picks for 4 bits on a CPU holds scales, inputs and outputs in bfloat16,
# 2^-9 a step, over some twenty steps; logits have a standard deviation near 4. Measured 0.31.
ATOL_BF16 = 0.6


def make(folder: Path, target: str, fmt: QuantFormat) -> Path:
    make_checkpoint("llama3", folder, dtype="F16", hidden_size=64, intermediate_size=128)
    return store_as_awq(folder, fmt) if target == "awq" else quantize_folder(folder, target, fmt)


def verdict_of(folder: Path) -> Any:
    return loaders(["transformers"])[0].judge(collect_facts(str(folder)))


def run(folder: Path, **arguments: Any) -> tuple[Any, Any]:
    """(logits of 20 tokens as transformers sees the folder, names of its Linear classes)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments)
    return judge_logits(model, torch.arange(3, 23)[None]), set(kernels(model))


def our_logits(folder: Path) -> Any:
    return our_decoder(folder)(torch.arange(3, 23)[None])


@pytest.mark.parametrize(
    ("target", "fmt", "bound"),
    [
        ("v1", QuantFormat(4, 32), ATOL_BF16),
        ("v2", QuantFormat(2, 32, False), ATOL_F32),
        ("compressed-tensors", QuantFormat(4, 32), ATOL_F32),
        ("awq", QuantFormat(4, 32, False), ATOL_BF16),
        ("awq", QuantFormat(4, 32, True), ATOL_BF16),
    ],
)
def test_a_yes_loads_with_no_argument(
    tmp_path: Path, target: str, fmt: QuantFormat, bound: float
) -> None:
    folder = make(tmp_path, target, fmt)
    assert verdict_of(folder).loads == "yes"
    logits, _ = run(folder)
    assert float((logits - our_logits(folder)).abs().max()) < bound


def test_awq_shapes_that_the_automatic_kernel_refuses_load_as_the_verdict_says(
    tmp_path: Path,
) -> None:
    from transformers import AwqConfig

    folder = make(tmp_path, "awq", QuantFormat(4, 16, False))
    verdict = verdict_of(folder)
    assert verdict.loads == "yes" and "fails on these shapes" in verdict.reason
    with pytest.raises(RuntimeError, match="qGroupSize"):
        run(folder)
    logits, classes = run(
        folder, quantization_config=AwqConfig(bits=4, group_size=16, backend="torch_awq")
    )
    assert "AwqTorchLinear" in classes
    # float16 weights and activations: 2^-11 a step. Measured 0.04.
    assert float((logits - our_logits(folder)).abs().max()) < 0.1


def test_a_no_for_the_group_size_is_a_no(tmp_path: Path) -> None:
    folder = make(tmp_path, "awq", QuantFormat(4, 8, False))
    assert verdict_of(folder).loads == "no"
    with pytest.raises((ValueError, NotImplementedError), match="group_size"):
        run(folder)


def test_a_no_for_quantize_config_alone_is_a_no(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path, "v1", QuantFormat(4, 32))
    config = json.loads((folder / "config.json").read_text())
    (folder / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (folder / "config.json").write_text(json.dumps(config))
    assert verdict_of(folder).loads == "no"
    logits, classes = run(folder)
    # It makes up every weight that it does not find: plain Linear layers, other logits.
    assert classes == {"Linear"}
    assert float((logits - our_logits(folder)).abs().max()) > 2.0
