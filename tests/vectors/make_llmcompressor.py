"""Write tests/vectors/llmcompressor.safetensors: modules that llm-compressor quantized and saved.

llm-compressor 0.14 pins compressed-tensors 0.19 and transformers below 5.18, so it cannot be
installed beside what the tests run with. It runs in an environment of its own that sees ours:

    python3.11 -m venv /tmp/lc
    echo $PWD/.venv/lib/python3.11/site-packages > /tmp/lc/lib/python3.11/site-packages/ours.pth
    /tmp/lc/bin/pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 \
        transformers==5.17.0 "huggingface_hub<2" httpx httpcore h11 loguru datasets pillow \
        nvidia-ml-py pyarrow dill xxhash multiprocess pandas aiohttp auto-round
    PYTHONPATH=.:tests /tmp/lc/bin/python tests/vectors/make_llmcompressor.py

A case is `<name>.<suffix>` for what the checkpoint stores of one module, `<name>.float` for the
weight that transformers and compressed-tensors compute with; the file's metadata holds each case's
quantization_config and the versions.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import make_checkpoint

PATH = Path(__file__).with_name("llmcompressor.safetensors")
MODULE = "model.layers.0.self_attn.k_proj"
PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def recipes() -> dict[str, Any]:
    """Name -> what llm-compressor does; GPTQ solves each."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier

    found = {"w8a8": GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])}
    for name, symmetric in (("w4_sym", True), ("w4_asym", False)):
        weights = QuantizationArgs(
            num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=32
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        found[name] = GPTQModifier(config_groups=groups, ignore=["lm_head"])
    return found


def quantize(source: Path, out: Path, recipe: Any) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 384, (16, 32), generator=generator).tolist()
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * 32} for row in rows])
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    oneshot(
        model=model, dataset=data, recipe=recipe, max_seq_length=32, num_calibration_samples=16,
        output_dir=str(out),
    )  # fmt: skip


def float_weight(folder: Path) -> torch.Tensor:
    """The module's weight after a forward pass has unpacked it, float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model(input_ids=torch.arange(3, 9)[None])
    weight: torch.Tensor = model.get_submodule(MODULE).weight.detach()
    return weight.float()


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    metadata = {name: importlib.metadata.version(name) for name in PACKAGES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        make_checkpoint("llama3", folder / "source", dtype="F16", **shape)
        for case, recipe in recipes().items():
            quantize(folder / "source", folder / case, recipe)
            stored = load_file(folder / case / "model.safetensors")
            for key, tensor in stored.items():
                if key.startswith(f"{MODULE}."):
                    tensors[f"{case}.{key.removeprefix(f'{MODULE}.')}"] = tensor
            if case != "w8a8":
                tensors[f"{case}.float"] = float_weight(folder / case)
            config = json.loads((folder / case / "config.json").read_text())
            metadata[f"{case}.config"] = json.dumps(config["quantization_config"])
    save_file(tensors, PATH, metadata)


if __name__ == "__main__":
    main()
