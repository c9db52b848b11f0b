"""A model.onnx, of whichever exporter, in ONNX Runtime: logits of a window, from an empty cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bcquant.eval.verify.backend import F32Array
from bcquant.spec.model_config import ModelConfig


class OnnxGraph:
    """Like `eval.verify.backend.Backend`, as far as `compare_logits` needs it."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self._session = ort.InferenceSession(
            str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._cache = np.zeros((1, config.num_kv_heads, 0, config.head_dim), np.float32)

    def logits(self, ids: Sequence[int]) -> F32Array:
        rows = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
        }
        feeds = {name: rows.get(name, self._cache) for name in self._inputs}
        found: F32Array = self._session.run(["logits"], feeds)[0][0]
        return found

    def close(self) -> None:
        del self._session
