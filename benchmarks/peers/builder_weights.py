"""Weights of a folder that onnxruntime-genai's model builder wrote, under canonical names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bcquant.eval.verify.backend import F32Array
from bcquant.eval.verify.read_onnx import OnnxWeights
from bcquant.eval.verify.stored_weights import Integers, Rows
from bcquant.quant.onnx_blocks import NBits, from_matmul_nbits
from bcquant.spec.model_config import ModelConfig


class BuilderWeights(OnnxWeights):
    """`StoredWeights`: q, k and v are rows of one matrix, scales and zeros are flat."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        super().__init__(folder)
        self._model = config

    def stored_as(self, name: str) -> str:
        return "MatMulNBits" if self._place(name.removesuffix(".weight")) else "floats"

    def integers(self, module: str) -> Integers | None:
        place = self._place(module)
        if place is None:
            return None
        names, rows = place
        data = self._read(names[0])
        n, groups, half = data.shape
        scales = self._read(names[1]).reshape(n, groups)
        zeros = self._read(names[2]).reshape(n, -1) if names[2] in self._tensors else None
        found = from_matmul_nbits(NBits(4, 2 * half, data, scales, zeros), groups * 2 * half)
        zeros_NK = np.repeat(found.zeros_NG.astype(np.int16), 2 * half, axis=1)
        levels = found.codes_NK.astype(np.int16) - zeros_NK
        return Integers(levels[rows], found.scales_NG[rows].astype(np.float32), 2 * half)

    def values(self, name: str, rows: Rows) -> F32Array:
        found = self.integers(name.removesuffix(".weight"))
        if found is None:
            final = f"model.layers.{self._model.num_layers}.final_norm_layernorm.weight"
            return super().values(final if name == "model.norm.weight" else name, rows)
        part = slice(*rows)
        scales = np.repeat(found.scales_NG[part], found.width, axis=1)
        return np.asarray(found.levels_NK[part] * scales, np.float32)

    def _place(self, module: str) -> tuple[tuple[str, str, str], slice] | None:
        """Codes, scales and zeros of a module by name, and its rows of them; None: floats."""
        if module == "model.embed_tokens":  # tied: the rounded head is gathered from
            head = "lm_head.MatMul.weight"
            return (f"{head}_Q4", f"{head}_scales", f"{head}_zp"), slice(None)
        if not module.endswith("_proj"):
            return None
        stem, _, short = module.replace("self_attn", "attn").rpartition(".")
        q, kv = self._model.q_size, self._model.kv_size
        fused = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
        rows = slice(*fused[short]) if short in fused else slice(None)
        name = f"{stem}.{'qkv_proj' if short in fused else short}.MatMulNBits"
        return (f"{name}.qweight", f"{name}.scales", f"{name}.qzeros"), rows
