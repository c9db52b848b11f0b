"""How far two sets of logits on the same tokens are from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bcquant.calib.dataset import I64Array
from bcquant.eval.verify.backend import F32Array

F64Array = npt.NDArray[np.float64]

_HUGE = 1e9
_MAX_NLL = 700.0  # beyond it exp() overflows; a uniform guess over 2^31 tokens has 21.5
_ROWS = 64  # positions whose probabilities exist at once, in float64


@dataclass(frozen=True)
class Agreement:
    """Figures over all positions.

    Attributes:
        num_tokens: positions compared.
        spread: standard deviation of the source's logits about their mean at each position.
        max_error: largest |export - source| of any logit.
        rms_error: root mean square of the same.
        kl_mean: mean divergence KL(source || export) of the next-token distributions, nats.
        kl_999: its 99.9 % quantile over positions.
        top1: share of positions with the same most likely token.
        perplexity: of the source and of the export.
    """

    num_tokens: int
    spread: float
    max_error: float
    rms_error: float
    kl_mean: float
    kl_999: float
    top1: float
    perplexity: tuple[float, float]

    @property
    def relative_error(self) -> float:
        """Largest error over the spread of the logits: a figure that fits every model."""
        return self.max_error / self.spread

    @property
    def perplexity_change(self) -> float:
        """(export - source) / source."""
        return self.perplexity[1] / self.perplexity[0] - 1


class AgreementMeter:
    """Collects windows, one at a time."""

    def __init__(self) -> None:
        self._kl: list[F64Array] = []
        self._max_error = 0.0
        self._square_error = 0.0
        self._square_spread = 0.0
        self._num_values = 0
        self._num_same = 0
        self._nll = [0.0, 0.0]
        self._num_scored = 0

    def add(self, source_TV: F32Array, export_TV: F32Array, ids_T: I64Array) -> None:
        """Add one window; position t predicts token t + 1, so the last one scores nothing.

        Args:
            source_TV, export_TV: logits of the same tokens.
            ids_T: those tokens.
        """
        for start in range(0, len(ids_T), _ROWS):
            part = slice(start, start + _ROWS)
            source = source_TV[part].astype(np.float64)
            # A NaN would pass every comparison below; as a huge number it fails each of them.
            export = export_TV[part].astype(np.float64)
            np.nan_to_num(export, copy=False, nan=_HUGE, posinf=_HUGE, neginf=-_HUGE)
            self._add_errors(source, export)
            log_source, log_export = _log_softmax(source), _log_softmax(export)
            self._kl.append((np.exp(log_source) * (log_source - log_export)).sum(axis=1))
            targets = ids_T[start + 1 : start + 1 + _ROWS]
            rows = np.arange(len(targets))
            self._num_scored += len(targets)
            for i, log_probs in enumerate((log_source, log_export)):
                self._nll[i] -= float(log_probs[rows, targets].sum())

    def result(self) -> Agreement:
        """The figures of everything that was added."""
        kl = np.concatenate(self._kl)
        means = [nll / max(1, self._num_scored) for nll in self._nll]
        perplexity = [math.exp(min(mean, _MAX_NLL)) for mean in means]
        return Agreement(
            num_tokens=len(kl),
            spread=math.sqrt(self._square_spread / self._num_values),
            max_error=self._max_error,
            rms_error=math.sqrt(self._square_error / self._num_values),
            kl_mean=float(kl.mean()),
            kl_999=float(np.quantile(kl, 0.999)),
            top1=self._num_same / len(kl),
            perplexity=(perplexity[0], perplexity[1]),
        )

    def _add_errors(
        self,
        source: F64Array,
        export: F64Array,
    ) -> None:
        error = np.abs(export - source)
        self._max_error = max(self._max_error, float(error.max()))
        self._square_error += float((error * error).sum())
        centred = source - source.mean(axis=1, keepdims=True)
        self._square_spread += float((centred * centred).sum())
        self._num_values += source.size
        self._num_same += int((source.argmax(axis=1) == export.argmax(axis=1)).sum())


def _log_softmax(
    logits: F64Array,
) -> F64Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: F64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
