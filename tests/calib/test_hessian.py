"""bcquant.calib.hessian: second moments against float64."""

from __future__ import annotations

import pytest
import torch
from random_layer import random_inputs

from bcquant.calib import hessian as hessian_module
from bcquant.calib.hessian import Moments


def add_all(quant: torch.Tensor, float_: torch.Tensor, chunk: int) -> Moments:
    moments = Moments(quant.shape[1])
    for start in range(0, len(quant), chunk):
        moments.add(quant[start : start + chunk], float_[start : start + chunk])
    return moments


@pytest.mark.parametrize("chunk", [1, 13, 300])
def test_moments_equal_float64(chunk: int) -> None:
    quant = random_inputs(300, 20)
    float_ = quant + 0.1 * random_inputs(300, 20, seed=1)
    moments = add_all(quant, float_, chunk)
    q, f = quant.double(), float_.double()
    # Sums of 300 float32 products, each off by 2^-24 of its size: 1e-6 of the largest entry.
    wanted = (f - q).T @ q / 300
    found = moments.take_cross()
    assert found is not None
    bound = 1e-6 * float(wanted.abs().max()) + 1e-6 * float((q.T @ q / 300).abs().max())
    torch.testing.assert_close(found.double(), wanted, atol=bound, rtol=0)
    wanted = q.T @ q / 300
    found = moments.hessian()
    torch.testing.assert_close(
        found.double(), wanted, atol=1e-6 * float(wanted.abs().max()), rtol=0
    )
    assert torch.equal(found, found.T)
    assert (moments.num_tokens, moments.num_dropped) == (300, 0)


@pytest.mark.parametrize("strip", [1, 3, 8, 19, 20, 64])
def test_strips_fill_the_whole_symmetric_matrix(
    monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    monkeypatch.setattr(hessian_module, "STRIP", strip)
    x = random_inputs(100, 20)
    found = add_all(x, x, 33).hessian()
    wanted = x.double().T @ x.double() / 100
    torch.testing.assert_close(
        found.double(), wanted, atol=1e-6 * float(wanted.abs().max()), rtol=0
    )
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tokens_with_a_non_finite_value_in_either_stream_are_dropped_and_counted(
    bad: float,
) -> None:
    quant = random_inputs(50, 12)
    float_ = quant + 0.1 * random_inputs(50, 12, seed=1)
    keep = torch.ones(50, dtype=torch.bool)
    keep[[3, 4, 40]] = False
    dirty_quant, dirty_float = quant.clone(), float_.clone()
    dirty_quant[3, 5] = bad
    dirty_float[4] = bad
    dirty_quant[40, 0], dirty_quant[40, 1] = bad, -bad
    dirty, clean = add_all(dirty_quant, dirty_float, 10), add_all(quant[keep], float_[keep], 50)
    assert (dirty.num_tokens, dirty.num_dropped) == (47, 3)
    # The same tokens in other chunks.
    torch.testing.assert_close(dirty.take_cross(), clean.take_cross(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(dirty.hessian(), clean.hessian(), atol=1e-5, rtol=1e-5)


def test_a_chunk_without_a_finite_token_adds_nothing() -> None:
    moments = Moments(4)
    moments.add(torch.full((5, 4), float("nan")), torch.zeros(5, 4))
    assert (moments.num_tokens, moments.num_dropped) == (0, 5)
    assert moments.take_cross() is None
    assert (moments.hessian() == 0).all()


def test_equal_streams_have_no_cross_moment() -> None:
    x = random_inputs(30, 8)
    assert add_all(x, x, 7).take_cross() is None
    assert add_all(x, x.clone(), 7).take_cross() is None


def test_inputs_are_not_written_to() -> None:
    quant, float_ = random_inputs(30, 8), random_inputs(30, 8, seed=1)
    copies = quant.clone(), float_.clone()
    add_all(quant, float_, 30).hessian()
    assert torch.equal(quant, copies[0]) and torch.equal(float_, copies[1])
