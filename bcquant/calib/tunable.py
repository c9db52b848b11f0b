"""A quantized model as a differentiable function of its scales, norms and biases.

Integers are frozen and kept as one byte a weight. A Linear dequantizes in the forward pass and
again in the backward one, so that autograd keeps its input and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bcquant.calib.smoothing import fake_int8_token
from bcquant.models.architecture import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    block_tensors,
    canonical_tensors,
    quantizable_modules,
)
from bcquant.models.attention import AttnContext, make_context
from bcquant.models.decoder import block_forward
from bcquant.models.norm import rms_norm
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.model_config import ModelConfig

F32Array = npt.NDArray[np.float32]
Leaves = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SealedModel:
    """A finished quantization, as the output will hold it.

    Attributes:
        tensor: full module name -> its canonical weight.
        stored_float: canonical tensor name -> float32 values, rounded to `float_dtype`.
        float_dtype: of everything that is not quantized.
        activation: `QuantFormat.activation` of the Linears.
        lm_head: it is quantized too.
    """

    tensor: Callable[[str], QuantizedTensor]
    stored_float: Callable[[str], F32Array]
    float_dtype: torch.dtype
    activation: str = "none"
    lm_head: bool = False


@dataclass(frozen=True)
class Slot:
    """One tensor inside the parameter vector.

    Attributes:
        name: a module for its scales, else a canonical tensor name.
        first, last: its range in the vector.
    """

    name: str
    first: int
    last: int
    shape: tuple[int, ...]


class Grid:
    """Frozen integers of one weight. Attributes: steps_NGg = codes - zeros; in_features."""

    def __init__(self, q: QuantizedTensor) -> None:
        n, k = q.codes_NK.shape
        num_groups, width = q.format.num_groups(k), q.format.group_width(k)
        flat = np.zeros((n, num_groups * width), np.int16)
        flat[:, :k] = q.codes_NK
        flat -= np.repeat(q.zeros_NG, width, axis=1)
        flat[:, k:] = 0
        fits = flat.min() >= -128 and flat.max() <= 127
        steps = torch.from_numpy(flat.astype(np.int8) if fits else flat)
        self.steps_NGg, self.in_features = steps.view(n, num_groups, width), k

    def weight(self, scales_NG: torch.Tensor) -> torch.Tensor:
        """Dequantized, float32, shape (N, K)."""
        weight = self.steps_NGg.to(torch.float32).mul_(scales_NG.unsqueeze(-1)).flatten(1)
        return weight[:, : self.in_features]

    def scale_gradient(self, weight_NK: torch.Tensor) -> torch.Tensor:
        """Gradient of the scales (N, G) from that of the weight (N, K), which is used up."""
        missing = self.steps_NGg.shape[1] * self.steps_NGg.shape[2] - self.in_features
        if missing:
            weight_NK = F.pad(weight_NK, (0, missing))
        return weight_NK.view(self.steps_NGg.shape).mul_(self.steps_NGg).sum(-1)


class _GridLinear(torch.autograd.Function):
    """x @ W(scales).T; keeps x (as the kernel sees it) and the scales."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales_NG: torch.Tensor, grid: Grid, is_int8: bool
    ) -> torch.Tensor:
        seen = fake_int8_token(x) if is_int8 else x
        ctx.save_for_backward(seen, scales_NG)
        ctx.grid = grid
        return seen @ grid.weight(scales_NG).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (y,) = gradients
        x, scales_NG = ctx.saved_tensors
        y_MN = y.flatten(0, -2)
        # Rounding to int8 passes gradients on as if it were not there.
        into_x = (y_MN @ ctx.grid.weight(scales_NG)).view(x.shape)
        into_scales = ctx.grid.scale_gradient(y_MN.T @ x.flatten(0, -2))
        return into_x, into_scales, None, None


# torch types neither the class nor its `apply`.
_apply: Callable[[torch.Tensor, torch.Tensor, Grid, bool], torch.Tensor] = cast(
    Any, _GridLinear
).apply


class TunableModel:
    """Scales, norms and biases of a quantized model in one vector, and its forward pass.

    Attributes:
        slots: where each tensor is; all scales come first.
        num_scales: numbers in `slots` that are scales.
        start_P: the values that were sealed.
        unit_P: what a parameter of 1 adds: a scale's own value, a float tensor's mean magnitude.
        head_VC: lm_head where it is not quantized.
    """

    def __init__(self, config: ModelConfig, sealed: SealedModel, used: npt.NDArray[Any]) -> None:
        """Read every integer, and the embeddings of the ids `used` (sorted, unique)."""
        self.config, self.sealed = config, sealed
        modules = [m for i in range(config.num_layers) for m in quantizable_modules(config, i)]
        if sealed.lm_head:
            modules.append("lm_head")
        self._grids: dict[str, Grid] = {}
        starts: dict[str, F32Array] = {}
        for module in modules:
            q = sealed.tensor(module)
            self._grids[module] = Grid(q)
            starts[module] = q.scales_NG.astype(np.float32)
        names = [name for name, shape in canonical_tensors(config) if len(shape) == 1]
        starts |= {name: sealed.stored_float(name) for name in names}
        units = [
            value if name in self._grids else np.full_like(value, np.abs(value).mean())
            for name, value in starts.items()
        ]
        self.slots = _slots(starts)
        self.num_scales = sum(s.last - s.first for s in self.slots if s.name in self._grids)
        self.start_P = torch.from_numpy(np.concatenate([v.ravel() for v in starts.values()]))
        self.unit_P = torch.from_numpy(np.concatenate([u.ravel() for u in units]))
        table = sealed.stored_float(EMBEDDING)
        self._rows = torch.from_numpy(table[used])
        self.head_VC = None
        if not sealed.lm_head:
            self.head_VC = torch.from_numpy(
                table if config.tie_embeddings else sealed.stored_float(HEAD)
            )
        self._contexts: dict[int, AttnContext] = {}

    def stored(self, parameters_P: torch.Tensor) -> torch.Tensor:
        """Values of all slots, rounded to what the output stores; float32, shape (P,)."""
        values = torch.addcmul(self.start_P, self.unit_P, parameters_P)
        scales, floats = values[: self.num_scales], values[self.num_scales :]
        scales.copy_(scales.to(torch.float16))
        floats.copy_(floats.to(self.sealed.float_dtype))
        return values

    def leaves(self, stored_P: torch.Tensor) -> Leaves:
        """Every slot as a tensor of its own that autograd follows; views of `stored_P`."""
        return {
            s.name: stored_P[s.first : s.last].view(s.shape).detach().requires_grad_()
            for s in self.slots
        }

    def gradient(self, leaves: Leaves) -> torch.Tensor:
        """d loss / d parameters, shape (P,). Rounding to the stored type counts as exact."""
        parts = [
            torch.zeros(s.last - s.first) if (g := leaves[s.name].grad) is None else g.flatten()
            for s in self.slots
        ]
        return torch.cat(parts).mul_(self.unit_P)

    def normed(self, leaves: Leaves, ids_ST: torch.Tensor) -> torch.Tensor:
        """Input of lm_head (S, T, C), as its kernel sees it.

        Args:
            ids_ST: positions in `used`.
        """
        cfg, seq_len = self.config, ids_ST.shape[1]
        if seq_len not in self._contexts:
            positions = torch.arange(seq_len).unsqueeze(0)
            self._contexts[seq_len] = make_context(cfg, positions, seq_len)
        h = F.embedding(ids_ST, self._rows)
        shorts = [short for short, shape in block_tensors(cfg) if len(shape) == 1]
        for layer in range(cfg.num_layers):
            prefix = f"model.layers.{layer}."
            small = {short: leaves[prefix + short] for short in shorts}
            linear = self._linear(prefix, leaves)
            h = block_forward(cfg, layer, small, h, self._contexts[seq_len], linear=linear)
        x = rms_norm(h, leaves[FINAL_NORM], cfg.rms_norm_eps)
        if self.sealed.lm_head and self.sealed.activation == "int8_token":
            x = x + (fake_int8_token(x.detach()) - x).detach()
        return x

    def head(self, leaves: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """lm_head's weight (V, C), dequantized where it is quantized."""
        if self.head_VC is not None:
            return self.head_VC
        return self._grids["lm_head"].weight(leaves["lm_head"].detach())

    def head_gradient(self, leaves: Leaves, head_VC: torch.Tensor) -> None:
        """Hand the gradient of lm_head's weight (V, C), which is used up, on to its scales."""
        leaves["lm_head"].grad = self._grids["lm_head"].scale_gradient(head_VC)

    def split(self, stored_P: torch.Tensor) -> tuple[dict[str, Any], dict[str, F32Array]]:
        """(module -> float16 scales (N, G), tensor name -> float32 values)."""
        found = {s.name: stored_P[s.first : s.last].view(s.shape).numpy() for s in self.slots}
        scales = {n: v.astype(np.float16) for n, v in found.items() if n in self._grids}
        return scales, {n: v.copy() for n, v in found.items() if n not in self._grids}

    def _linear(self, prefix: str, leaves: Leaves) -> Any:
        is_int8 = self.sealed.activation == "int8_token"

        def linear(
            x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
        ) -> torch.Tensor:
            module = prefix + name
            y = _apply(x, leaves[module], self._grids[module], is_int8)
            return y if bias is None else y + bias

        return linear


def _slots(starts: Mapping[str, F32Array]) -> list[Slot]:
    slots, first = [], 0
    for name, value in starts.items():
        slots.append(Slot(name, first, first + value.size, value.shape))
        first += value.size
    return slots
