"""The sealed modules of a run as the output holds them: input scales folded into their producers.

A stage whose input is scaled by 2^-e was sealed with columns scaled by 2^e. Its producer takes the
2^-e over here: a norm in its weights, v_proj and up_proj in their rows' scales and biases.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bcquant.calib.layer_stream import PRODUCERS
from bcquant.io.digest import digest_arrays
from bcquant.models.architecture import STAGES
from bcquant.models.source import ModelSource
from bcquant.pipeline.resume import Arrays, Journal
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.manifest import ManifestRow
from bcquant.spec.recipe import Recipe

EXPONENTS = "exponents"  # of the columns, among a sealed module's arrays
F32Array = npt.NDArray[np.float32]

# Short name of a norm, a bias or a Linear -> the first module of the stage that it feeds.
_CONSUMERS = {
    name: stage[0]
    for stage, (producer, vectors) in zip(STAGES, PRODUCERS, strict=True)
    for name in (producer, *vectors)
}


class FoldedModel:
    """What `journal` holds, folded. Reads files; keeps nothing."""

    def __init__(self, source: ModelSource, journal: Journal, recipe: Recipe) -> None:
        self.source, self.journal, self.recipe = source, journal, recipe

    def tensor(self, module: str) -> QuantizedTensor:
        """A module's canonical weight, with tuned scales if the run has tuned them.

        Raises:
            CheckpointError: its file is gone or is not what was sealed.
        """
        q = self.untuned(module)
        tuned = self.journal.tuned.get(module)
        return q if tuned is None else replace(q, scales_NG=tuned)

    def untuned(self, module: str) -> QuantizedTensor:
        """A module's canonical weight before tuning."""
        arrays = self.journal.recall(module)
        scales = arrays["scales"]
        factors = self._row_factors(module)
        if factors is not None:
            scales = (scales.astype(np.float32) * factors[:, None]).astype(np.float16)
        return QuantizedTensor(
            arrays["codes"], scales, arrays["zeros"], self.recipe.format_of(module)
        )

    def row(self, module: str) -> ManifestRow:
        """The manifest's row; its digest is that of the tensors in the output."""
        row = self.journal.rows[module]
        if not self._folds() and module not in self.journal.tuned:
            return row
        q = self.tensor(module)
        arrays: Arrays = {"codes": q.codes_NK, "scales": q.scales_NG, "zeros": q.zeros_NG}
        return replace(row, digest=digest_arrays(arrays))

    def changed_float(self, name: str) -> F32Array | None:
        """A norm or bias that is tuned or takes an input scale over; None = as in the source."""
        if name in self.journal.tuned:
            return self.journal.tuned[name]
        factors = self._row_factors(name)
        if factors is None:
            return None
        return np.asarray(self.source.weight(name) * factors, np.float32)

    def _folds(self) -> bool:
        """Whether inputs may be scaled at all; only then are the consumers' files looked into."""
        return self.recipe.format.activation != "none"

    def _row_factors(self, name: str) -> F32Array | None:
        """2^-e of a producer's rows; None = 1."""
        if not (self._folds() and name.startswith("model.layers.")):
            return None
        prefix, short = name.split(".", 3)[:3], name.split(".", 3)[3]
        consumer = _CONSUMERS.get(short)
        module = ".".join([*prefix, consumer or ""])
        if consumer is None or module not in self.journal.rows:
            return None
        exponents_K = self.journal.recall(module).get(EXPONENTS)
        if exponents_K is None:
            return None
        if consumer == STAGES[1][0]:  # the columns of one value head's first query head
            cfg = self.source.config
            grouped = exponents_K.reshape(cfg.num_kv_heads, -1, cfg.head_dim)
            exponents_K = grouped[:, 0].reshape(-1)
        return np.exp2(-exponents_K.astype(np.float32))
