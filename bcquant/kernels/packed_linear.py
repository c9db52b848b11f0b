"""Linear layers of torch models over packed weights.

A packed weight travels as a uint8 tensor, the blob of layout `bcq_n16k32_v1`: it takes the place of
the float weight in a block's dict, and `linear_hook` computes with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bcquant.errors import KernelError, ShapeError
from bcquant.kernels import native
from bcquant.quant.tensors import QuantizedTensor

Hook = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None, str], torch.Tensor]


def pack_tensor(q: QuantizedTensor) -> torch.Tensor:
    """A quantized weight as a packed blob, uint8, shape (bytes,).

    Raises:
        KernelError: the kernels take group sizes that are multiples of 32, and whole rows.
    """
    packed = native.pack(
        np.ascontiguousarray(q.codes_NK),
        np.ascontiguousarray(q.scales_NG),
        None if q.format.symmetric else np.ascontiguousarray(q.zeros_NG),
        q.format.bits,
        q.format.group_width(q.in_features),
    )
    blob = torch.empty(packed.nbytes, dtype=torch.uint8)  # torch aligns to 64 bytes
    blob.numpy()[:] = np.frombuffer(packed.tobytes(), np.uint8)
    return blob


def apply_packed(
    context: native.Context,
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    precision: str,
) -> torch.Tensor:
    """x @ W.T + bias.

    Args:
        x: shape (..., K) on the CPU; other dtypes than float32 are converted, and y back.
        packed: from `pack_tensor`.
        bias: shape (N,).
        precision: a key of `native.PRECISIONS`.
    Returns:
        shape (..., N), the dtype of x.
    Raises:
        ShapeError: x is not (..., K), or not on the CPU.
        KernelError: the blob is none, a precision it has no kernel for, or a gradient is wanted.
    """
    weight = native.open_packed(packed.numpy())
    if x.device.type != "cpu" or x.shape[-1:] != (weight.in_features,):
        raise ShapeError(
            f"x has shape {list(x.shape)} on {x.device}; (..., {weight.in_features}) on the CPU "
            "is needed"
        )
    if torch.is_grad_enabled() and x.requires_grad:
        raise KernelError("packed weights have no gradient; use torch.no_grad()")
    n = weight.out_features
    x_MK = x.detach().reshape(-1, weight.in_features).to(torch.float32).contiguous()
    y_MN = torch.empty(len(x_MK), n)
    if bias is not None:
        y_MN.copy_(bias.detach().expand(len(x_MK), n))
    native.linear(context, [weight], x_MK.numpy(), [y_MN.numpy()], precision, bias is not None)
    return y_MN.to(x.dtype).reshape(*x.shape[:-1], n)


class PackedLinear(torch.nn.Module):
    """A Linear whose weight is packed; for inference.

    Attributes:
        packed: the blob, a buffer of the module.
        bias: shape (N,) or None.
        precision: a key of `native.PRECISIONS`.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        quantized: QuantizedTensor,
        bias: torch.Tensor | None = None,
        precision: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Pack a weight.

        Args:
            precision: None = what the format says: "int8_token" for W8A8, else "exact".
            num_threads: None = as many as torch uses.
        Raises:
            KernelError: there is no kernel for the format.
        """
        super().__init__()
        if precision is None:
            is_int8 = quantized.format.activation == "int8_token"
            precision = "int8_token" if is_int8 else "exact"
        self.in_features, self.out_features = quantized.in_features, quantized.out_features
        self.precision = precision
        self.register_buffer("packed", pack_tensor(quantized))
        self.register_buffer("bias", bias)
        self._context = native.context(num_threads or torch.get_num_threads())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x @ W.T + bias, shape (..., N)."""
        return apply_packed(self._context, x, self.packed, self.bias, self.precision)

    def extra_repr(self) -> str:
        """For print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, precision={self.precision}, tier={self._context.tier}"
        )


def linear_hook(precision: str = "exact", num_threads: int | None = None) -> Hook:
    """What `bcquant.models.decoder.Decoder.linear` wants, for blocks with packed weights.

    A uint8 weight is a blob of `pack_tensor`; float weights are multiplied as ever.

    Raises:
        KernelError: no kernel tier can run.
    """
    context = native.context(num_threads or torch.get_num_threads())

    def linear(
        x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        if weight is None:
            raise KeyError(f"{name}.weight")
        if weight.dtype != torch.uint8:
            return F.linear(x, weight, bias)
        return apply_packed(context, x, weight, bias, precision)

    return linear
