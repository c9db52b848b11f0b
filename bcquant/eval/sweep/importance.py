"""Mean squares of every Linear's inputs: what llama.cpp calls an importance matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bcquant.models.architecture import EMBEDDING
from bcquant.models.attention import make_context
from bcquant.models.decoder import block_forward, load_block, plain_linear
from bcquant.models.precision import fast_float32
from bcquant.models.source import F32Array, ModelSource


def mean_squares(source: ModelSource, ids_ST: npt.NDArray[np.int64]) -> dict[str, F32Array]:
    """Mean of x^2 over all tokens, the diagonal of the module's Hessian.

    Args:
        ids_ST: sequences of equal length, each on its own.
    Returns:
        full module name -> float32 (K,).
    """
    cfg = source.config
    num, length = ids_ST.shape
    embedding = torch.from_numpy(source.weight(EMBEDDING))
    found: dict[str, F32Array] = {}
    with fast_float32(), torch.inference_mode():
        hidden_STC = embedding[torch.from_numpy(ids_ST)]
        context = make_context(cfg, torch.arange(length).unsqueeze(0), length)
        for layer in range(cfg.num_layers):
            weights = load_block(source, layer)
            sums: dict[str, torch.Tensor] = {}

            def linear(
                x: torch.Tensor,
                weight: torch.Tensor | None,
                bias: torch.Tensor | None,
                name: str,
                sums: dict[str, torch.Tensor] = sums,
            ) -> torch.Tensor:
                part = x.square().sum(dim=tuple(range(x.ndim - 1)), dtype=torch.float64)
                sums[name] = sums[name] + part if name in sums else part
                return plain_linear(x, weight, bias, name)

            for s in range(num):
                hidden_STC[s] = block_forward(
                    cfg, layer, weights, hidden_STC[s : s + 1], context, linear=linear
                )[0]
            for short, total in sums.items():
                mean = (total / (num * length)).to(torch.float32)
                found[f"model.layers.{layer}.{short}"] = mean.numpy()
    return found
