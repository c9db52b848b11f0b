"""Judge: gptqmodel's own loader reads our folders, and we read what its own quantizer writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges.conftest import MakeSource
from judges.harness import (
    ATOL_F32,
    judge_logits,
    judge_tokens,
    kernels,
    our_decoder,
    our_tokens,
    prompts,
    quantize,
)

from bcquant.models.source import open_model
from bcquant.quant.limits import reader_limits
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # gptqmodel leaves a temporary folder to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


def load(gptqmodel: Any, folder: Path) -> Any:
    """The transformers model inside gptqmodel's, in float16: it refuses to load float32."""
    backend = gptqmodel.BACKEND.GPTQ_TORCH
    return gptqmodel.GPTQModel.load(
        str(folder), backend=backend, device="cpu", dtype=torch.float16
    ).model


@pytest.mark.parametrize(
    ("bits", "symmetric", "version", "family", "lm_head"),
    [
        (2, True, "gptq", "llama3", False),
        (3, True, "gptq", "mistral", False),
        (4, True, "gptq", "qwen2", True),
        (8, True, "gptq", "qwen3", False),
        (2, False, "gptq_v2", "qwen3", True),
        (3, False, "gptq_v2", "qwen2", False),
        (4, False, "gptq_v2", "baichuan", False),
        (8, False, "gptq_v2", "llama3", True),
    ],
)
def test_gptqmodel_loads_and_agrees(
    gptqmodel: Any, make_source: MakeSource, tmp_path: Path, bits: int, symmetric: bool,
    version: str, family: str, lm_head: bool,
) -> None:  # fmt: skip
    fmt = QuantFormat(bits, 32, symmetric)
    folder = quantize(make_source(family), tmp_path / "q", fmt, version, lm_head=lm_head)
    model, ids = load(gptqmodel, folder), prompts(folder)
    assert kernels(model) == ({"TorchLinear": 15} if lm_head else {"TorchLinear": 14, "Linear": 1})
    decoder = our_decoder(folder)
    expected = decoder(ids)
    # float16 throughout: 2^-11 a step, over some twenty steps of values up to 20. Measured 0.06.
    torch.testing.assert_close(judge_logits(model, ids), expected, atol=0.2, rtol=0)
    # The same loaded tensors computed in float32: scales exact, and so every weight.
    model = model.float()
    torch.testing.assert_close(judge_logits(model, ids), expected, atol=ATOL_F32, rtol=0)
    assert judge_tokens(model, ids[0]) == our_tokens(folder, decoder, ids[0])


def test_asymmetric_v1_is_refused_as_reader_limits_says(
    gptqmodel: Any, make_source: MakeSource, tmp_path: Path
) -> None:
    fmt = QuantFormat(4, 32, symmetric=False)
    folder = quantize(make_source("llama3"), tmp_path / "q", fmt)
    assert "use gptq_v2" in reader_limits(fmt, 64, 64, "gptq")[0]
    with pytest.raises(ValueError, match="sym=False model with format"):
        load(gptqmodel, folder)


@pytest.fixture(scope="module")
def calibration() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(3, 384, (1, 32), generator=generator),
            "attention_mask": torch.ones(1, 32, dtype=torch.long),
        }
        for _ in range(16)
    ]


@pytest.mark.parametrize(("version", "symmetric"), [("gptq", True), ("gptq_v2", False)])
def test_we_read_what_gptqmodel_quantized(
    gptqmodel: Any, make_source: MakeSource, calibration: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, version: str, symmetric: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    monkeypatch.chdir(tmp_path)
    settings = gptqmodel.QuantizeConfig(
        bits=4, group_size=32, sym=symmetric, desc_act=False, format=version,
        offload_to_disk=False,
        pack_impl="original",  # its default compiles a C++ extension for half a minute
    )  # fmt: skip
    source = make_source("llama3")
    theirs = gptqmodel.GPTQModel.load(str(source), settings, device="cpu", dtype=torch.float16)
    theirs.quantize(calibration, batch_size=1)
    folder = tmp_path / "theirs"
    theirs.save(str(folder))
    model = load(gptqmodel, folder)
    modules = {n: m for n, m in model.named_modules() if type(m).__name__ == "TorchLinear"}
    assert len(modules) == 14
    with open_model(folder) as ours:
        assert ours.quant is not None and ours.quant.format == QuantFormat(4, 32, symmetric)
        for name, module in modules.items():
            # The kernel multiplies in float16: one rounding of the exact product.
            expected = module.dequantize_weight().T.numpy()
            assert np.array_equal(ours.weight(f"{name}.weight").astype(np.float16), expected), name
    decoder, ids = our_decoder(folder), prompts(source)
    torch.testing.assert_close(
        judge_logits(model.float(), ids), decoder(ids), atol=ATOL_F32, rtol=0
    )
    assert judge_tokens(model, ids[0]) == our_tokens(folder, decoder, ids[0])
