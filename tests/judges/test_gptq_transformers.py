"""Judge: transformers + optimum + gptqmodel's torch kernel load what `bcquant gptq` writes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

pytestmark = [
    pytest.mark.judge,
    # Third-party imports announce their own deprecations; the UserWarning says that the folder's
    # settings are kept and only `backend` is taken from what was passed, as these tests want.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config` or equivalent:UserWarning"),
    # gptqmodel leaves a temporary folder to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]

# Family, dtype of the source, keys over the family's own.
SOURCES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama3", "F16", {}),
    ("qwen2", "BF16", {}),
    ("qwen3", "F16", {}),
    ("mistral", "BF16", {}),
    ("baichuan", "F16", {}),
    ("llama_bias", "F32", {}),
    ("llama3", "BF16", {"tie_word_embeddings": True}),
    ("qwen2", "F16", {"tie_word_embeddings": True}),
    ("qwen3", "BF16", {"tie_word_embeddings": False}),
    ("mistral", "F16", {}),
    ("baichuan", "BF16", {}),
    ("smollm2", "F16", {"num_key_value_heads": 2}),  # 3-bit words need N % 32 == 0
)
FORMATS = [
    QuantFormat(bits, group_size, symmetric)
    for bits, symmetric, group_size in itertools.product((2, 3, 4, 8), (True, False), (32, 64, -1))
]


def cases() -> list[Any]:
    """Every format once; v1 and v2 alternate, so each width, symmetry and group meets both."""
    found = []
    for i, fmt in enumerate(FORMATS):
        version = ("gptq", "gptq_v2")[(i + i // 3) % 2]
        source = SOURCES[i % len(SOURCES)]
        kind = "sym" if fmt.symmetric else "asym"
        name = f"{version}-{fmt.bits}b-{kind}-g{fmt.group_size}-{source[0]}-{source[1]}"
        found.append(pytest.param((fmt, version, source), id=name))
    return found


@dataclass(frozen=True)
class Trial:
    """One written folder and the judge's model of it."""

    fmt: QuantFormat
    folder: Path
    model: Any


def load(folder: Path, fmt: QuantFormat, **arguments: Any) -> Any:
    """The judge's model. The exact kernel is asked for by name; see docs/formats/gptq_v1.md."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    wanted = GPTQConfig(bits=fmt.bits, backend="gptq_torch")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=wanted, **arguments)


@pytest.fixture(scope="module", params=cases())
def trial(
    request: pytest.FixtureRequest,
    gptqmodel: Any,
    make_source: MakeSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trial:
    pytest.importorskip("optimum", reason="optimum, which transformers loads GPTQ by, is missing")
    fmt, version, (family, dtype, over) = request.param
    folder = quantize(
        make_source(family, dtype, **over), tmp_path_factory.mktemp("out") / "q", fmt, version
    )
    return Trial(fmt, folder, load(folder, fmt, dtype=torch.float32))


def test_every_linear_of_the_blocks_runs_in_the_exact_kernel(trial: Trial) -> None:
    assert kernels(trial.model) == {"TorchLinear": 14, "Linear": 1}


def test_logits_agree(trial: Trial) -> None:
    ids = prompts(trial.folder)
    # The kernel holds a weight in float16: one rounding of the exact product.
    expected = our_decoder(trial.folder, rounded_to=torch.float16)(ids)
    assert expected.std() > 1  # logits that are all alike would agree by chance
    torch.testing.assert_close(judge_logits(trial.model, ids), expected, atol=ATOL_F32, rtol=0)


def test_greedy_tokens_agree(trial: Trial) -> None:
    prompt = prompts(trial.folder)[0]
    decoder = our_decoder(trial.folder, rounded_to=torch.float16)
    assert judge_tokens(trial.model, prompt) == our_tokens(trial.folder, decoder, prompt)


def test_judges_tokenizer_gives_our_ids(trial: Trial) -> None:
    from transformers import AutoTokenizer

    text = "An expression, then 3.14 and\n  indented text."
    theirs = AutoTokenizer.from_pretrained(trial.folder)(text, add_special_tokens=False)
    assert theirs.input_ids == open_tokenizer(trial.folder).encode(text, add_special=False)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("family", ["llama3", "qwen3"])  # untied, and tied before
def test_quantized_head_is_loaded(
    gptqmodel: Any, make_source: MakeSource, tmp_path: Path, family: str, version: str
) -> None:
    """optimum finds lm_head by `block_name_to_quantize`; without it transformers makes up one."""
    fmt = QuantFormat(4, 64, symmetric=version == "gptq")
    folder = quantize(make_source(family), tmp_path / "q", fmt, version, lm_head=True)
    model = load(folder, fmt, dtype=torch.float32)
    assert kernels(model) == {"TorchLinear": 15}
    decoder, ids = our_decoder(folder, rounded_to=torch.float16), prompts(folder)
    torch.testing.assert_close(judge_logits(model, ids), decoder(ids), atol=ATOL_F32, rtol=0)
    assert judge_tokens(model, ids[0]) == our_tokens(folder, decoder, ids[0])


def test_loading_without_any_argument(
    gptqmodel: Any, make_source: MakeSource, tmp_path: Path
) -> None:
    """What most users type: the folder's own dtype, and the kernel that gptqmodel picks."""
    from transformers import AutoModelForCausalLM

    folder = quantize(make_source("llama3"), tmp_path / "q", QuantFormat(4, 64))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert kernels(model) == {"TorchAtenLinear": 14, "Linear": 1}
    ids = prompts(folder)
    expected, got = our_decoder(folder)(ids), judge_logits(model, ids)
    # It rounds scales, inputs and outputs of every Linear to bfloat16, 2^-9 each, and 14 Linears
    # in 2 layers add up: measured 1.4 % (root mean square) of the logits.
    error = (got - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.03
