"""Tiny AWQ `gemm` checkpoints, written a value at a time and not by bcquant's own code.

`awq_folder(tmp_path / "m", QuantFormat(4, 32, symmetric=False))` writes one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from factory import make_tiny

from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.writer import write_safetensors
from bcquant.quant.grid import quantize_nearest
from bcquant.spec.quant_format import QuantFormat

# Column of each nibble of a word, lowest first.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq_words(values_RN: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Words of AWQ, shape (R, N / 8)."""
    rows, n = values_RN.shape
    words = np.zeros((rows, n // 8), np.uint32)
    for nibble, column in enumerate(ORDER):
        words |= values_RN[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def awq_config(fmt: QuantFormat) -> dict[str, Any]:
    """config.json["quantization_config"] as AutoAWQ writes it."""
    return {
        "quant_method": "awq", "bits": fmt.bits, "group_size": fmt.group_size, "version": "gemm",
        "zero_point": not fmt.symmetric, "modules_to_not_convert": None,
    }  # fmt: skip


def awq_folder(folder: Path, fmt: QuantFormat, family: str = "llama", **factory_args: Any) -> Path:
    """A tiny model whose blocks' Linear weights are rounded to nearest and stored as AWQ.

    Args:
        factory_args: of `factory.make_tiny`.
    """
    make_tiny(family, folder, "F16", **factory_args)
    return store_as_awq(folder, fmt)


def store_as_awq(folder: Path, fmt: QuantFormat) -> Path:
    """The same to a float folder that is there already; its other files stay."""
    tensors: dict[str, Any] = {}
    with open_checkpoint(folder) as reader:
        for name in reader.tensors:
            module = name.removesuffix(".weight")
            if ".layers." not in name or not module.endswith("proj"):
                tensors[name] = reader.read(name)
                continue
            q = quantize_nearest(reader.read_f32(name), fmt)
            tensors[f"{module}.qweight"] = awq_words(q.codes_NK.T)
            tensors[f"{module}.qzeros"] = awq_words(q.zeros_NG.T)
            tensors[f"{module}.scales"] = q.scales_NG.T.copy()
        config = dict(reader.config)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": awq_config(fmt)})
    )
    return folder
