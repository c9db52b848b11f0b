"""ONNX exports of tiny models, run by ONNX Runtime, and the logits that they must give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from export_run import run_export

from bcquant.exporters.onnx import EXPORTER
from bcquant.exporters.onnx.options import OnnxOptions
from bcquant.models.source import open_model

F32Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

# Both sides in float32: sums of at most 128 products in another order, through 2 layers, on logits
# of standard deviation 4. Measured up to 3.1e-5 over all families, formats and calls.
ATOL_F32 = 1e-4


def export(source: Path, out: Path, **options: Any) -> Path:
    """Plan, validate and write as the command line does; `options` are those of OnnxOptions."""
    options.setdefault("accuracy_level", 0)
    run_export(EXPORTER, source, out, OnnxOptions(**options))
    return out


def token_ids(rows: int, columns: int, vocab_size: int = 96) -> Ids:
    """Random ids, the special ones left out."""
    return np.random.default_rng(0).integers(3, vocab_size, (rows, columns))


def true_logits(source: Path, ids: Ids) -> F32Array:
    """Logits of models/decoder.py in float32; W8A8 models round activations per token."""
    import torch

    from bcquant.calib.smoothing import fake_int8_token
    from bcquant.models.decoder import Decoder, plain_linear

    def int8_linear(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        return plain_linear(fake_int8_token(x), *rest)

    with open_model(source) as model:
        decoder = Decoder.load(model)
        if model.quant is not None and model.quant.format.activation == "int8_token":
            decoder.linear = int8_linear
    logits: F32Array = decoder(torch.from_numpy(ids)).numpy()
    return logits


class Session:
    """ONNX Runtime on an export, one thread, with its caches.

    Attributes:
        session: of ONNX Runtime.
        past: caches after the last call, in the graph's order.
    """

    def __init__(self, folder: Path, **config: str) -> None:
        ort = pytest.importorskip("onnxruntime", reason="onnxruntime, the judge, is not installed")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        self.session = ort.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._caches = [v for v in self.session.get_inputs() if v.name.startswith("past")]
        self.past: list[npt.NDArray[Any]] = []

    def prefill(self, ids: Ids, mask: Ids | None = None) -> F32Array:
        """Logits of a prompt from empty caches."""
        kind = np.float16 if "16" in self._caches[0].type else np.float32
        shapes = [(len(ids), v.shape[1], 0, v.shape[3]) for v in self._caches]
        self.past = [np.zeros(shape, kind) for shape in shapes]
        return self.step(ids, mask)

    def step(self, ids: Ids, mask: Ids | None = None) -> F32Array:
        """Logits of the next tokens; `mask` covers the caches' slots and these tokens."""
        total = self.past[0].shape[2] + ids.shape[1]
        feeds = {v.name: array for v, array in zip(self._caches, self.past, strict=True)}
        feeds["input_ids"] = ids
        feeds["attention_mask"] = np.ones((len(ids), total), np.int64) if mask is None else mask
        logits, *self.past = self.session.run(None, feeds)
        return np.asarray(logits, np.float32)

    def one_by_one(self, ids: Ids, prompt: int) -> F32Array:
        """Logits of all tokens: a prefill of `prompt`, then one call a token."""
        parts = [self.prefill(ids[:, :prompt])]
        parts += [self.step(ids[:, t : t + 1]) for t in range(prompt, ids.shape[1])]
        return np.concatenate(parts, axis=1)


def worst(found: F32Array, wanted: F32Array) -> float:
    """Largest absolute difference."""
    return float(np.abs(found - wanted).max())


def relative(found: F32Array, wanted: F32Array) -> float:
    """Root mean square of the difference, relative to the standard deviation of the logits."""
    return float(np.sqrt(np.square(found - wanted).mean()) / wanted.std())
