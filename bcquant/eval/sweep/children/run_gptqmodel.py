"""gptqmodel with given settings, on given tokens."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

IMPORTS = ("numpy", "torch", "gptqmodel")


def quantize(job: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    """Write the checkpoint job["out"]."""
    np = importlib.import_module("numpy")
    gptqmodel = importlib.import_module("gptqmodel")
    windows = np.load(job["calibration"]).tolist()
    data = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows]
    settings = dict(job["settings"])
    if "foem" in settings:
        configs = importlib.import_module("gptqmodel.quantization.config")
        settings["foem"] = configs.FOEMConfig(**settings["foem"])
    config = gptqmodel.QuantizeConfig(**settings)
    model = gptqmodel.GPTQModel.load(job["model"], config, device="cpu")
    model.quantize(data, batch_size=1)
    model.save(job["out"])
    return {}
