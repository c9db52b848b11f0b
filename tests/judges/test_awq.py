"""Judge and writer: gptqmodel's AWQ quantizer makes a folder, transformers and we read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges.conftest import MakeSource
from judges.harness import (
    judge_logits,
    judge_tokens,
    kernels,
    our_decoder,
    our_tokens,
    prompts,
)

from bcquant.cli import main
from bcquant.errors import ConfigError
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config` or equivalent:UserWarning"),
]


@pytest.fixture(scope="module", params=[("qwen2", False), ("llama3", True)], ids=["asym", "sym"])
def awq_folder(
    request: pytest.FixtureRequest, gptqmodel: Any, make_source: MakeSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, bool]:  # fmt: skip
    """(folder, symmetric) as gptqmodel's AWQ wrote it: scales folded, clipped, packed, on a CPU."""
    from gptqmodel.quantization import FORMAT, METHOD

    family, symmetric = request.param
    source = make_source(family, num_key_value_heads=4)  # its clipping needs 64 rows of K and V
    generator = torch.Generator().manual_seed(0)
    calibration = [
        {
            "input_ids": torch.randint(3, 384, (1, 32), generator=generator),
            "attention_mask": torch.ones(1, 32, dtype=torch.long),
        }
        for _ in range(16)
    ]
    folder = tmp_path_factory.mktemp("awq") / "theirs"
    settings = gptqmodel.QuantizeConfig(
        bits=4, group_size=32, sym=symmetric, quant_method=METHOD.AWQ, format=FORMAT.GEMM,
        offload_to_disk=False,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTQMODEL_CPU_WORKERS", "2")
        patch.chdir(folder.parent)
        model = gptqmodel.GPTQModel.load(str(source), settings, device="cpu", dtype=torch.float16)
        model.quantize(calibration, batch_size=1, backend=gptqmodel.BACKEND.AWQ_TORCH)
        model.save(str(folder))
    return folder, symmetric


def test_transformers_and_we_read_the_same_integers_and_logits(
    awq_folder: tuple[Path, bool],
) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq
    from transformers import AutoModelForCausalLM, AwqConfig

    folder, symmetric = awq_folder
    wanted = AwqConfig(bits=4, group_size=32, backend="torch_awq")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=wanted, dtype=torch.float32, device_map="cpu"
    )
    assert kernels(model) == {"AwqTorchLinear": 14, "Linear": 1}
    with open_model(folder) as ours:
        assert ours.quant is not None
        assert ours.quant.format == QuantFormat(4, 32, symmetric)
        for name, module in model.named_modules():
            if type(module).__name__ != "AwqTorchLinear":
                continue
            columns = module.scales.shape[-1]
            codes, zeros = reverse_awq_order(
                *unpack_awq(module.qweight, module.qzeros, 4, columns), 4
            )
            q = ours.quantized(name)
            assert q is not None
            assert np.array_equal(q.codes_NK, (codes & 15).T.numpy()), name
            assert np.array_equal(q.zeros_NG, (zeros & 15).T.numpy()), name
            assert np.array_equal(q.scales_NG, module.scales.T.numpy()), name
    decoder, ids = our_decoder(folder), prompts(folder)
    expected = decoder(ids)
    assert expected.std() > 1  # logits that are all alike would agree by chance
    # The kernel takes inputs, weights and results in float16: 2^-11 a step, over some twenty steps
    # of values up to 20. Measured 0.06.
    torch.testing.assert_close(judge_logits(model, ids), expected, atol=0.2, rtol=0)
    assert judge_tokens(model, ids[0]) == our_tokens(folder, decoder, ids[0])


def test_every_verb_takes_the_folder(
    awq_folder: tuple[Path, bool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, symmetric = awq_folder
    text = tmp_path / "text.txt"
    text.write_text("A statement comprises expressions; if x is true, it stops. " * 8)
    assert main(["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    kind = "symmetric" if symmetric else "asymmetric"
    assert report["format"] == f"AWQ gemm, 4-bit, group 32, {kind}, in safetensors"
    assert report["generate"] == "native engine"
    assert main(["eval", "ppl", str(folder), "--text", str(text)]) == 0
    assert main(["generate", str(folder), "--prompt", "if x", "--max-new-tokens", "4"]) == 0


def test_another_awq_layout_is_refused_in_one_sentence(
    awq_folder: tuple[Path, bool], tmp_path: Path
) -> None:
    folder, _ = awq_folder
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    entry = config["quantization_config"]
    entry |= dict.fromkeys(("version", "format", "checkpoint_format"), "gemv")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="AWQ version 'gemv' is laid out for another kernel"):
        open_model(tmp_path)
