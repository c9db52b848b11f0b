"""KL divergence of next tokens between two models, with its gradient by hand, a few rows at a time.

Autograd would keep several (tokens, vocabulary) arrays; here one piece of them exists at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PIECE_TOKENS = 64  # positions whose logits exist at once; 128 and more leave the cache


@dataclass(frozen=True)
class Divergence:
    """KL(wanted || found) over M positions and where it falls.

    Attributes:
        kl_sum: nats, summed over the positions.
        normed_MC: d kl_sum / d (input of the found model's head).
        head_VC: d kl_sum / d (the found model's head); None if it was not asked for.
    """

    kl_sum: float
    normed_MC: torch.Tensor
    head_VC: torch.Tensor | None


def divergence(
    wanted_MC: torch.Tensor,
    wanted_head_VC: torch.Tensor,
    found_MC: torch.Tensor,
    found_head_VC: torch.Tensor,
    with_head: bool = False,
) -> Divergence:
    """KL of the softmax of `found` from that of `wanted`, and its gradient.

    Args:
        wanted_MC, found_MC: inputs of the heads, float32; not tracked by autograd here.
        with_head: compute the gradient of `found_head_VC` too, V * C more numbers.
    Source: d KL / d logits = softmax(found) - softmax(wanted).
    """
    total = 0.0
    normed_MC = torch.empty_like(found_MC)
    head_VC = torch.zeros_like(found_head_VC) if with_head else None
    with torch.no_grad():
        for start in range(0, len(found_MC), PIECE_TOKENS):
            part = slice(start, start + PIECE_TOKENS)
            wanted = torch.log_softmax(wanted_MC[part] @ wanted_head_VC.T, -1)
            found = torch.log_softmax(found_MC[part] @ found_head_VC.T, -1)
            share = wanted.exp()
            total += float((wanted.sub_(found)).mul_(share).sum(dtype=torch.float64))
            slope = found.exp_().sub_(share)
            normed_MC[part] = slope @ found_head_VC
            if head_VC is not None:
                head_VC.addmm_(slope.T, found_MC[part])
    return Divergence(total, normed_MC, head_VC)
