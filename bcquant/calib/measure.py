"""From final hidden states to figures: negative log-likelihood and divergence of next tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bcquant.calib.likelihood import perplexity
from bcquant.models.norm import rms_norm

HEAD_TOKENS = 256  # positions whose logits exist at once


class Head:
    """Final norm and lm_head. Attributes: norm_C and head_VC, float32."""

    def __init__(self, norm_C: torch.Tensor, head_VC: torch.Tensor, eps: float) -> None:
        self.norm_C, self.head_VC, self.eps = norm_C, head_VC, eps

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """lm_head's input, same shape as `hidden` (..., C)."""
        return rms_norm(hidden, self.norm_C, self.eps)

    def log_probs(self, normed_MC: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (M, V) of the next token."""
        return F.log_softmax(normed_MC @ self.head_VC.T, dim=-1)


def nll_sum(
    head: Head,
    hidden_TC: torch.Tensor,
    targets_T: torch.Tensor,
    seen: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> float:
    """Sum of -log p(target) in nats; hidden_TC[t] predicts targets_T[t].

    Args:
        seen: lm_head's input as its kernel sees it; rounds it where activations are int8.
    """
    total = 0.0
    for start in range(0, len(targets_T), HEAD_TOKENS):
        part = slice(start, start + HEAD_TOKENS)
        log_probs = head.log_probs(seen(head.normed(hidden_TC[part])))
        total -= float(log_probs.gather(1, targets_T[part, None]).sum(dtype=torch.float64))
    return total


class PairMeter:
    """Perplexity of two models on the same tokens, and how far the second is from the first."""

    def __init__(self) -> None:
        self.tokens = 0
        self._nll = [0.0, 0.0]
        self._kl = 0.0
        self._agree = 0

    def add(self, log_probs: tuple[torch.Tensor, torch.Tensor], targets_M: torch.Tensor) -> None:
        """Add M positions; log_probs are (M, V) of the float and the quantized model."""
        first, second = log_probs
        self.tokens += len(targets_M)
        for i, values in enumerate(log_probs):
            self._nll[i] -= float(values.gather(1, targets_M[:, None]).sum(dtype=torch.float64))
        self._agree += int((first.argmax(-1) == second.argmax(-1)).sum())
        self._kl += float((first.exp() * (first - second)).sum(dtype=torch.float64))

    def figures(self) -> dict[str, float]:
        """Both perplexities, increase_percent, kl_mean (nats), top1_agreement, tokens."""
        count = max(1, self.tokens)
        before, after = (perplexity(n, count) for n in self._nll)
        return {
            "perplexity_float": before,
            "perplexity_quantized": after,
            "increase_percent": 100.0 * (after / before - 1.0),
            "kl_mean": self._kl / count,
            "top1_agreement": self._agree / count,
            "tokens": float(self.tokens),
        }
