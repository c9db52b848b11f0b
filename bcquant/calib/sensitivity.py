"""How far the model's predictions move when one fused set of modules loses bits: one backward pass.

A fused set is a stage of one layer (q,k,v | o | gate,up | down). To second order the divergence
KL(float || rounded) that a change dW of it causes is half the Fisher form of the change in its
output: with labels y drawn from the float model's own predictions and g_t the gradient of the sum
of their log-likelihoods by the output at token t, 1/2 E (g_t . dW x_t)^2. Changes at different
tokens are taken as independent. One draw of labels serves all sets and all numbers of bits; only
one layer's weights are in memory.

Measured on SmolLM2-135M (192 tokens, 40 sets at 2, 3 and 4 bits, 120 at 3) against the divergence
of the whole model with only that set rounded, logarithms: correlation 0.96 to 0.97, deviation 0.22
to 0.24, for 9 CPU seconds. Scaling a set's divergence at one number of bits by the output error to
another: 0.89 to 0.93, 0.28 to 0.35, for 60 seconds and quadratic in the layers. With cross terms of
tokens 0.87 to 0.93; one Kronecker factor a row 0.80 to 0.94; the output error alone -0.4 to -0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bcquant.calib.dataset import I64Array
from bcquant.calib.layer_stream import gather_rows
from bcquant.calib.measure import HEAD_TOKENS, Head
from bcquant.calib.scratch import ScratchArray
from bcquant.errors import SolverError
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, STAGES
from bcquant.models.attention import make_context
from bcquant.models.decoder import block_forward, load_block, plain_linear
from bcquant.models.source import ModelSource
from bcquant.solvers._search import search_grid
from bcquant.solvers.rtn import round_to_grid
from bcquant.spec.quant_format import QuantFormat

GRAPH_TOKENS = 512  # tokens whose activations are kept for a gradient at once
DAMP = 0.01  # share of the mean added to the inputs' mean squares: no column weighs nothing
NUM_RATIOS = 12
STAGE_OF = {names[0]: stage for stage, names in enumerate(STAGES)}  # its modules share one input

Progress = Callable[[int, int], None]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SetCost:
    """What rounding one fused set costs, by bits.

    Attributes:
        kl: predicted divergence of the whole model, nats a token.
        errors: E |dW x|^2 / E |W x|^2.
    """

    kl: dict[int, float]
    errors: dict[int, float]


class SensitivityStream:
    """The float model's activations at every layer boundary and the gradient at the current one.

    Owns `boundary<l>.f32` and `gradient<l>.f32` in `folder`. Call `forward` once, then `run_layer`
    from the last layer to the first; all that a later process needs to go on is in the files.
    Not for use under `torch.inference_mode`.
    """

    def __init__(
        self,
        source: ModelSource,
        ids_ST: I64Array,
        folder: Path,
        formats: tuple[QuantFormat, ...],
        layer: int | None = None,
    ) -> None:
        """Start before `forward`, or behind it with `layer` layers left.

        Args:
            ids_ST: token ids, shape (S, T); everything is measured on them.
            formats: what a set may become, of different bits.
        """
        self.source, self.ids_ST, self.folder, self.formats = source, ids_ST, folder, formats
        self.layer = source.config.num_layers if layer is None else layer
        seq_len = ids_ST.shape[1]
        self.per_chunk = max(1, GRAPH_TOKENS // seq_len)
        self.context = make_context(source.config, torch.arange(seq_len).unsqueeze(0), seq_len)
        self._made: list[ScratchArray] = []

    def _array(self, kind: str, layer: int, keep: bool) -> ScratchArray:
        num, seq_len = self.ids_ST.shape
        shape = (num, seq_len, self.source.config.hidden_size)
        array = ScratchArray(self.folder / f"{kind}{layer}.f32", shape, keep)
        self._made.append(array)
        return array

    def _chunks(self) -> Iterator[slice]:
        num = len(self.ids_ST)
        for start in range(0, num, self.per_chunk):
            yield slice(start, min(start + self.per_chunk, num))

    @torch.no_grad()
    def forward(self, seed: int, progress: Progress = lambda done, total: None) -> None:
        """Fill every boundary and find the gradient at the last.

        Args:
            seed: draws the labels.
            progress: called with (layers done, layers).
        """
        num_layers = self.source.config.num_layers
        hidden = self._array("boundary", 0, keep=False)
        self._embed(hidden)
        for layer in range(num_layers):
            weights = load_block(self.source, layer)
            following = self._array("boundary", layer + 1, keep=False)
            for part in self._chunks():
                h = hidden.read(part.start, part.stop)
                h = block_forward(self.source.config, layer, weights, h, self.context)
                following.write(part.start, h)
            hidden.sync()
            hidden.close()
            hidden = following
            progress(layer + 1, num_layers)
        gradient = self._array("gradient", num_layers, keep=False)
        self._head_gradient(hidden, gradient, torch.Generator().manual_seed(seed))
        gradient.sync()
        gradient.close()
        hidden.discard()

    def _embed(self, hidden: ScratchArray) -> None:
        used, inverse = np.unique(self.ids_ST, return_inverse=True)
        rows = gather_rows(
            lambda low, high: self.source.weight(EMBEDDING, (low, high)),
            used,
            self.source.config.vocab_size,
        )
        ids = torch.from_numpy(inverse.reshape(self.ids_ST.shape))
        for part in self._chunks():
            hidden.write(part.start, torch.from_numpy(rows)[ids[part]])

    def _head_gradient(
        self, hidden: ScratchArray, gradient: ScratchArray, generator: torch.Generator
    ) -> None:
        """Gradient of the drawn labels' log-likelihood by the last layer's output."""
        source = self.source
        weight = torch.from_numpy(source.weight(HEAD if source.has(HEAD) else EMBEDDING))
        norm = torch.from_numpy(source.weight(FINAL_NORM))
        head = Head(norm, weight, source.config.rms_norm_eps)
        for s in range(len(self.ids_ST)):
            parts: list[torch.Tensor] = []
            hidden_TC = hidden.read(s, s + 1)[0]
            for start in range(0, len(hidden_TC), HEAD_TOKENS):
                with torch.enable_grad():
                    leaf = hidden_TC[start : start + HEAD_TOKENS].clone().requires_grad_()
                    normed = head.normed(leaf)
                shares = head.log_probs(normed.detach()).exp_()
                if not bool(torch.isfinite(shares).all()):
                    raise SolverError(
                        "the model's logits are not finite on the calibration text, so bits "
                        "cannot be allocated; give --bits instead"
                    )
                labels = torch.multinomial(shares, 1, generator=generator)
                pull = shares.neg_().scatter_add_(1, labels, torch.ones(len(labels), 1))
                parts += torch.autograd.grad(normed, leaf, pull @ weight)
            gradient.write(s, torch.cat(parts).unsqueeze(0))

    def run_layer(self) -> list[SetCost]:
        """Costs of the last layer that is left, a stage each; the gradient then is at its input.

        Call `forget_previous` once the result is recorded.

        Raises:
            SolverError: weights or activations are not finite.
        """
        layer = self.layer - 1
        weights = load_block(self.source, layer)
        boundary = self._array("boundary", layer, keep=True)
        behind = self._array("gradient", layer + 1, keep=True)
        before = self._array("gradient", layer, keep=False)
        inputs: list[list[torch.Tensor]] = [[] for _ in STAGES]
        pulls: dict[str, list[torch.Tensor]] = {name: [] for names in STAGES for name in names}
        for part in self._chunks():
            h, pull = (array.read(part.start, part.stop) for array in (boundary, behind))
            seen, found, back = self._backward(layer, weights, h, pull)
            before.write(part.start, back)
            for stage, x in enumerate(seen):
                inputs[stage].append(x)
            for name, value in found.items():
                pulls[name].append(value)
        before.sync()
        before.close()
        costs = []
        for stage, names in enumerate(STAGES):
            x_MK = torch.cat(inputs[stage])
            inputs[stage].clear()
            costs.append(self._cost(weights, x_MK, {n: torch.cat(pulls.pop(n)) for n in names}))
        self._previous, self.layer = (boundary, behind), layer
        return costs

    def _backward(
        self, layer: int, weights: Tensors, h: torch.Tensor, pull: torch.Tensor
    ) -> tuple[list[torch.Tensor], Tensors, torch.Tensor]:
        """Every stage's input (M, K), the gradient at every module's output (M, N) by short name,
        and at the layer's input, from the gradient `pull` at its output."""
        seen: list[torch.Tensor] = [torch.zeros(0)] * len(STAGES)
        outputs: Tensors = {}

        def observed(
            x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
        ) -> torch.Tensor:
            if name in STAGE_OF:
                seen[STAGE_OF[name]] = x.detach().flatten(0, 1)
            outputs[name] = plain_linear(x, weight, bias, name)
            return outputs[name]

        with torch.enable_grad():
            leaf = h.requires_grad_()
            out = block_forward(
                self.source.config, layer, weights, leaf, self.context, None, observed
            )
            back, *found = torch.autograd.grad(out, [leaf, *outputs.values()], pull)
        flat = {name: g.flatten(0, 1) for name, g in zip(outputs, found, strict=True)}
        return seen, flat, back

    @torch.no_grad()
    def _cost(self, weights: Tensors, x_MK: torch.Tensor, pulls: Tensors) -> SetCost:
        """Cost of a set: its input and the gradients at its modules' outputs."""
        mean_K = x_MK.square().mean(0)
        mean_K += DAMP * mean_K.mean() + 1e-30
        size = sum(_energy(x_MK @ weights[f"{name}.weight"].T) for name in pulls)
        cost = SetCost({}, {})
        for fmt in self.formats:
            moved_M, error = torch.zeros(len(x_MK)), 0.0
            for name, pull_MN in pulls.items():
                weight = weights[f"{name}.weight"]
                scales, zeros = search_grid(weight, mean_K, fmt, NUM_RATIOS)
                rounded = round_to_grid(weight, scales, zeros, fmt).dequantize()
                change_MN = x_MK @ rounded.sub_(weight).T
                moved_M += torch.linalg.vecdot(pull_MN, change_MN)
                error += _energy(change_MN)
            cost.kl[fmt.bits] = 0.5 * _energy(moved_M) / len(x_MK)
            cost.errors[fmt.bits] = error / max(size, 1e-30)
            if not np.isfinite([cost.kl[fmt.bits], error]).all():
                raise SolverError(
                    f"layer {self.layer - 1}, {' '.join(pulls)}: weights or activations are not "
                    "finite, so bits cannot be allocated; give --bits instead"
                )
        return cost

    def forget_previous(self) -> None:
        """Drop what the finished layer was measured from; call once its costs are recorded."""
        for array in self._previous:
            array.discard()

    def close(self) -> None:
        """Close the files; they stay for a later run."""
        for array in self._made:
            array.close()


def _energy(values: torch.Tensor) -> float:
    """Sum of squares."""
    return float(values.square().sum(dtype=torch.float64))
