"""KL and its hand-made gradient against autograd."""

from __future__ import annotations

import pytest
import torch

from bcquant.calib.divergence import PIECE_TOKENS, divergence


def test_divergence_equals_autograd_across_pieces() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = PIECE_TOKENS + 5
    wanted, found = (torch.randn(rows, 8, generator=generator) for _ in range(2))
    wanted_head, found_head = (torch.randn(30, 8, generator=generator) for _ in range(2))
    found.requires_grad_()
    found_head.requires_grad_()
    p = torch.log_softmax(wanted @ wanted_head.T, -1)
    q = torch.log_softmax(found @ found_head.T, -1)
    kl = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    kl.backward()
    got = divergence(wanted, wanted_head, found.detach(), found_head.detach(), with_head=True)
    # float32 sums of some 2000 terms in another order
    assert got.kl_sum == pytest.approx(float(kl.detach()), rel=1e-5)
    assert got.head_VC is not None and found.grad is not None and found_head.grad is not None
    torch.testing.assert_close(got.normed_MC, found.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.head_VC, found_head.grad, rtol=1e-4, atol=1e-4)


def test_equal_models_have_no_divergence_and_no_slope() -> None:
    hidden, head = torch.randn(3, 4), torch.randn(7, 4)
    got = divergence(hidden, head, hidden, head)
    assert got.kl_sum == 0.0 and not bool(got.normed_MC.any()) and got.head_VC is None
