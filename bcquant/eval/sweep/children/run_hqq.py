"""HQQ of every Linear, given back as the floats that it stands for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMPORTS = ("torch", "safetensors.torch", "hqq.core.quantize")


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write job["out"]/decoder.safetensors in float32; returns the stored bits."""
    torch = importlib.import_module("torch")
    safetensors = importlib.import_module("safetensors.torch")
    quantizer = importlib.import_module("hqq.core.quantize").Quantizer
    bits, group_size = job["settings"]["bits"], job["settings"]["group_size"]
    weights = safetensors.load_file(str(Path(job["model"]) / "decoder.safetensors"))
    found, stored_bits = {}, 0
    for i, name in enumerate(weights):
        weight_NK = weights[name].float()
        # axis 1: groups along the row, which is what the fast kernels of HQQ take.
        codes, meta = quantizer.quantize(
            weight_NK, nbits=bits, group_size=None if group_size == -1 else group_size, axis=1,
            compute_dtype=torch.float16, device="cpu",
        )  # fmt: skip
        # As float16 is how HQQ keeps them.
        for key in ("scale", "zero"):
            meta[key] = meta[key].to(torch.float16).float()
        meta["compute_dtype"] = torch.float32
        found[name] = quantizer.dequantize(codes, meta).contiguous()
        stored_bits += bits * weight_NK.numel() + 16 * (
            meta["scale"].numel() + meta["zero"].numel()
        )
        say(i + 1, len(weights))
    safetensors.save_file(found, str(Path(job["out"]) / "decoder.safetensors"), {"format": "pt"})
    return {"bits": stored_bits}
