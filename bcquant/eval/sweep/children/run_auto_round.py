"""auto-round on given tokens, given back as the floats that its codes stand for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = ("numpy", "torch", "safetensors.torch", "transformers", "auto_round")


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write job["out"]/decoder.safetensors in float32; returns the stored bits."""
    np = importlib.import_module("numpy")
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    auto_round = importlib.import_module("auto_round")
    settings = job["settings"]
    ids_ST = torch.from_numpy(np.load(job["calibration"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    batch_size = min(settings["batch_size"], len(ids_ST))
    rounder = auto_round.AutoRound(
        model, tokenizer=tokenizer, bits=settings["bits"], group_size=settings["group_size"],
        sym=settings["sym"], iters=settings["iters"], lr=settings["lr"], batch_size=batch_size,
        seqlen=ids_ST.shape[1], nsamples=len(ids_ST), device_map="cpu",
        dataset=[{"input_ids": ids} for ids in ids_ST.split(batch_size)],
    )  # fmt: skip
    model, _ = rounder.quantize()
    found, stored_bits = {}, 0.0
    for name, module in model.named_modules():
        if ".layers." in name and name.endswith("_proj"):
            weight_NK = module.weight.detach().to(torch.float32).contiguous()
            found[f"{name}.weight"] = weight_NK
            num_groups = module.scale.numel()
            zero_bits = 0 if settings["sym"] else settings["bits"]
            stored_bits += settings["bits"] * weight_NK.numel() + (16 + zero_bits) * num_groups
    out = Path(job["out"]) / "decoder.safetensors"
    importlib.import_module("safetensors.torch").save_file(found, str(out), {"format": "pt"})
    return {"bits": stored_bits}
