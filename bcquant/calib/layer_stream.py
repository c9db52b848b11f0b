"""One forward per layer, stage by stage, for the float model and the quantized prefix side by side.

    norm -> [q,k,v] -> attention -> [o] -> add, norm -> [gate,up] -> silu * -> [down] -> add

At each bracket both streams' inputs are turned into moments, the modules are solved, and both
streams go on, the float one with the float weights, the other with what was just written. Only one
stage's weights are in memory; activations live in `ScratchArray` files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.hessian import Moments
from bcquant.calib.measure import HEAD_TOKENS, Head, PairMeter
from bcquant.calib.scratch import ScratchArray
from bcquant.calib.smoothing import InputProbe, fake_int8_token
from bcquant.errors import CheckpointError
from bcquant.models import decoder
from bcquant.models.architecture import STAGES
from bcquant.models.attention import attend, make_context
from bcquant.models.source import ModelSource

# Per stage: what makes its input, and the float vectors of it.
PRODUCERS = (
    ("input_layernorm.weight", ("input_layernorm.weight",)),
    ("self_attn.v_proj", ("self_attn.v_proj.bias",)),
    ("post_attention_layernorm.weight", ("post_attention_layernorm.weight",)),
    ("mlp.up_proj", ("mlp.up_proj.bias",)),
)
CHUNK_TOKENS = 2048  # tokens that go through a stage at once
FLOAT, QUANT = 0, 1

Weights = dict[str, torch.Tensor]
F32Array = npt.NDArray[np.float32]
Inputs = Callable[[int, slice], torch.Tensor]


@dataclass(frozen=True)
class StageData:
    """What a solver gets to know of one stage.

    Attributes:
        weights: full module name -> float32 weight (N, K).
        moments: Hessian and cross moment of the shared input on the train tokens.
        held_float_MK, held_quant_MK: the input on the held-out select tokens in both streams;
            M = 0 where nothing is held out.
    """

    weights: Weights
    moments: Moments
    held_float_MK: torch.Tensor
    held_quant_MK: torch.Tensor


class StageSolver(Protocol):
    """Turns stages into quantized weights; owned by the pipeline.

    Where the inputs of a stage are scaled by 2^-e, `recall` and `solve` deal in weights whose
    columns are scaled by 2^e.
    """

    def input_exponents(
        self, modules: list[str], probe: Callable[[], InputProbe]
    ) -> torch.Tensor | None:
        """e, int8, shape (K,), of a stage with int8 activations; None = inputs as they are.

        Args:
            probe: what a choice needs to know, measured when it is called.
        """
        ...

    def recall(self, modules: list[str]) -> Weights | None:
        """Dequantized weights if every one of these modules is already sealed, else None."""
        ...

    def solve(self, stage: StageData) -> Weights:
        """Quantize and seal; the dequantized weights that the quantized stream goes on with."""
        ...


@dataclass(frozen=True)
class _Stage:
    """A solved stage.

    Attributes:
        weights: by stream, by short name; of the quantized stream with scaled columns.
        factors_K: 2^e of the quantized stream's inputs; None = 1.
    """

    weights: tuple[Weights, Weights]
    factors_K: torch.Tensor | None


class LayerStream:
    """Both activation streams of a model at one layer boundary.

    Owns the scratch files in `folder`: `hidden` of the current layer survives an interruption,
    everything else is made again.
    """

    def __init__(
        self,
        source: ModelSource,
        tokens: CalibrationTokens,
        folder: Path,
        stored_dtype: torch.dtype,
        activation: str = "none",
        next_layer: int = 0,
    ) -> None:
        """Start at `next_layer`, whose hidden states must be in `folder` unless it is 0.

        Args:
            stored_dtype: the output's float dtype; the quantized stream uses norms, biases and
                embeddings as rounded to it.
            activation: `QuantFormat.activation` of the quantized stream's linears.
        """
        self.source, self.tokens, self.folder = source, tokens, folder
        self.stored_dtype, self.activation = stored_dtype, activation
        self.layer = next_layer
        num, seq_len = tokens.ids_ST.shape
        self.shape = (num, seq_len)
        self.per_chunk = max(1, CHUNK_TOKENS // seq_len)
        self.context = make_context(
            source.config, torch.arange(seq_len).unsqueeze(0), seq_len, None
        )
        self._made: list[ScratchArray] = []
        self._within: dict[str, tuple[ScratchArray, ScratchArray]] = {}
        self.hidden = self._arrays(
            f"hidden{next_layer}", source.config.hidden_size, keep=next_layer > 0
        )
        self._is_head_quantized = False
        # A kill between the record of a layer and `forget_previous` leaves the layer's inputs.
        for path in folder.glob("hidden*.f32"):
            if not path.name.startswith(f"hidden{next_layer}."):
                path.unlink()
        if next_layer == 0:
            try:
                self._embed()
            except BaseException:
                self.close()
                raise

    def _arrays(
        self, name: str, width: int, keep: bool = False
    ) -> tuple[ScratchArray, ScratchArray]:
        shape = (*self.shape, width)
        pair = (
            ScratchArray(self.folder / f"{name}.float.f32", shape, keep),
            ScratchArray(self.folder / f"{name}.quant.f32", shape, keep),
        )
        self._made += pair
        return pair

    def _within_layer(self, name: str, width: int) -> tuple[ScratchArray, ScratchArray]:
        """Arrays that hold nothing from one layer to the next. Every layer writes over the same
        files: new pages cost three times as much (SmolLM2: 15 CPU seconds a run instead of 5)."""
        if name not in self._within:
            self._within[name] = self._arrays(name, width)
        return self._within[name]

    def chunks(self, first: int = 0, last: int | None = None) -> Iterator[slice]:
        """Runs of sequences of about CHUNK_TOKENS tokens, in order."""
        stop = self.shape[0] if last is None else last
        for start in range(first, stop, self.per_chunk):
            yield slice(start, min(start + self.per_chunk, stop))

    def _embed(self) -> None:
        name = "model.embed_tokens.weight"
        used, inverse = np.unique(self.tokens.ids_ST, return_inverse=True)
        vocab_size = self.source.config.vocab_size
        ids = torch.from_numpy(inverse.reshape(self.shape))
        rows = gather_rows(
            lambda low, high: self.source.weight(name, (low, high)), used, vocab_size
        )
        table = torch.from_numpy(rows)
        rounded = self._rounded(table)
        for part in self.chunks():
            self.hidden[FLOAT].write(part.start, table[ids[part]])
            self.hidden[QUANT].write(part.start, rounded[ids[part]])

    def stored(self, name: str) -> torch.Tensor:
        """A tensor of the source as the output will hold it, float32."""
        return self._rounded(self.source_tensor(name))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.stored_dtype).to(torch.float32)

    def run_layer(self, solver: StageSolver) -> None:
        """Take both streams through the current layer; `hidden` then belongs to the next one."""
        cfg, layer = self.source.config, self.layer
        small = (self._small(self.source_tensor), self._small(self.stored))
        hidden = self.hidden

        def attn_input(s: int, part: slice) -> torch.Tensor:
            return decoder.attn_input(cfg, small[s], hidden[s].read(part.start, part.stop))

        qkv = self._stage(0, solver, attn_input, small)
        attended = self._within_layer("attended", cfg.q_size)
        for s, part in self._both():
            x = self._seen(s, attn_input(s, part), qkv.factors_K)
            q, k, v = (self._linear(s, x, qkv, small, name) for name in STAGES[0])
            attended[s].write(part.start, attend(cfg, layer, small[s], q, k, v, self.context))
        del qkv

        def o_input(s: int, part: slice) -> torch.Tensor:
            return attended[s].read(part.start, part.stop)

        o = self._stage(1, solver, o_input, small)
        middle = self._within_layer("middle", cfg.hidden_size)
        for s, part in self._both():
            h = hidden[s].read(part.start, part.stop)
            x = self._seen(s, o_input(s, part), o.factors_K)
            h += self._linear(s, x, o, small, STAGES[1][0])
            middle[s].write(part.start, h)
        del o

        def mlp_input(s: int, part: slice) -> torch.Tensor:
            return decoder.mlp_input(cfg, small[s], middle[s].read(part.start, part.stop))

        gate_up = self._stage(2, solver, mlp_input, small)
        gated = self._within_layer("gated", cfg.intermediate_size)
        for s, part in self._both():
            x = self._seen(s, mlp_input(s, part), gate_up.factors_K)
            gate, up = (self._linear(s, x, gate_up, small, name) for name in STAGES[2])
            gated[s].write(part.start, decoder.gated(gate, up))
        del gate_up

        def down_input(s: int, part: slice) -> torch.Tensor:
            return gated[s].read(part.start, part.stop)

        down = self._stage(3, solver, down_input, small)
        following = self._arrays(f"hidden{layer + 1}", cfg.hidden_size)
        for s, part in self._both():
            h = middle[s].read(part.start, part.stop)
            x = self._seen(s, down_input(s, part), down.factors_K)
            h += self._linear(s, x, down, small, STAGES[3][0])
            following[s].write(part.start, h)
        for array in following:
            array.sync()
        self._previous, self.hidden, self.layer = hidden, following, layer + 1

    def solve_head(
        self, weight_VC: torch.Tensor, heads: list[Head], solver: StageSolver
    ) -> torch.Tensor:
        """Quantize lm_head on the final norm's output; the dequantized weight (V, C)."""
        self._is_head_quantized = True
        done = solver.recall(["lm_head"])
        if done is None:

            def inputs(s: int, part: slice) -> torch.Tensor:
                return self._seen(s, heads[s].normed(self.hidden[s].read(part.start, part.stop)))

            done = solver.solve(self.observe({"lm_head": weight_VC}, inputs))
        return done["lm_head"]

    def measure_sequence(self, index: int, heads: list[Head], meter: PairMeter) -> None:
        """Add one sequence's next-token predictions of both streams to `meter`."""
        targets = torch.from_numpy(self.tokens.ids_ST[index, 1:])
        hidden = [self.hidden[s].read(index, index + 1)[0, :-1] for s in (FLOAT, QUANT)]
        for start in range(0, len(targets), HEAD_TOKENS):
            part = slice(start, start + HEAD_TOKENS)
            seen = [heads[s].normed(hidden[s][part]) for s in (FLOAT, QUANT)]
            if self._is_head_quantized:  # a float head's input is not rounded to int8 either
                seen[QUANT] = self._seen(QUANT, seen[QUANT])
            meter.add(
                (heads[FLOAT].log_probs(seen[FLOAT]), heads[QUANT].log_probs(seen[QUANT])),
                targets[part],
            )

    def forget_previous(self) -> None:
        """Drop the finished layer's inputs; call once the layer is recorded as done."""
        _discard(self._previous)

    def close(self) -> None:
        """Close the files; they stay for a later run."""
        for array in self._made:
            array.close()

    def source_tensor(self, name: str) -> torch.Tensor:
        """A tensor of the source, float32."""
        return torch.from_numpy(self.source.weight(name))

    def _small(self, read: Callable[[str], torch.Tensor]) -> Weights:
        """Norms and biases of the current layer, keyed by short name."""
        prefix = f"model.layers.{self.layer}."
        linears = {f"{name}.weight" for stage in STAGES for name in stage}
        names = [n for n in self.source.names() if n.startswith(prefix)]
        return {n[len(prefix) :]: read(n) for n in names if n[len(prefix) :] not in linears}

    def _both(self) -> Iterator[tuple[int, slice]]:
        for s in (FLOAT, QUANT):
            for part in self.chunks():
                yield s, part

    def _seen(self, s: int, x: torch.Tensor, factors_K: torch.Tensor | None = None) -> torch.Tensor:
        """The input as the stream's linears see it; the quantized stream's over `factors_K`."""
        if s == FLOAT or self.activation == "none":
            return x
        return fake_int8_token(x if factors_K is None else x / factors_K)

    def _linear(
        self,
        s: int,
        x: torch.Tensor,
        stage: _Stage,
        small: tuple[Weights, Weights],
        name: str,
    ) -> torch.Tensor:
        return F.linear(x, stage.weights[s][name], small[s].get(f"{name}.bias"))

    def _stage(
        self, index: int, solver: StageSolver, inputs: Inputs, small: tuple[Weights, Weights]
    ) -> _Stage:
        """Solve a stage."""
        prefix = f"model.layers.{self.layer}."
        names = [prefix + name for name in STAGES[index]]
        weights = {n: self.source_tensor(f"{n}.weight") for n in names}
        factors_K = None
        if self.activation != "none":
            found = solver.input_exponents(
                names, lambda: self._probe(index, weights, inputs, small[QUANT])
            )
            factors_K = None if found is None else found.to(torch.float32).exp2()
        done = solver.recall(names)
        if done is None:
            scaled = weights
            if factors_K is not None:
                scaled = {n: w * factors_K for n, w in weights.items()}

            def seen(s: int, part: slice) -> torch.Tensor:
                x = inputs(s, part)
                if s == FLOAT and factors_K is not None:
                    return x / factors_K
                return self._seen(s, x, factors_K)

            done = solver.solve(self.observe(scaled, seen))
        short = len(prefix)
        return _Stage(
            ({n[short:]: w for n, w in weights.items()}, {n[short:]: w for n, w in done.items()}),
            factors_K,
        )

    def _probe(self, index: int, weights: Weights, inputs: Inputs, stored: Weights) -> InputProbe:
        """Peaks and held-out inputs of the quantized stream, before they are rounded."""
        cfg, in_features = self.source.config, next(iter(weights.values())).shape[1]
        producer, vectors = PRODUCERS[index]
        rows_K = torch.arange(in_features)
        if index == 1:  # query heads that share a value head share its rows
            head, place = rows_K // cfg.head_dim, rows_K % cfg.head_dim
            rows_K = head // (cfg.num_heads // cfg.num_kv_heads) * cfg.head_dim + place
        train, select = self.tokens.num_train, self.tokens.num_select
        peaks_K = torch.zeros(in_features)
        for part in self.chunks(0, train):
            peak = inputs(QUANT, part).flatten(0, 1).abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
            peaks_K = torch.maximum(peaks_K, peak)
        held = [inputs(QUANT, part).flatten(0, 1) for part in self.chunks(train, train + select)]
        held_MK = torch.cat(held) if held else torch.zeros(0, in_features)
        held_MK = held_MK[torch.isfinite(held_MK.sum(-1))]
        return InputProbe(
            weights, f"model.layers.{self.layer}.{producer}", rows_K, peaks_K, held_MK,
            tuple(stored[name] for name in vectors if name in stored),
        )  # fmt: skip

    def observe(self, weights: Weights, inputs: Inputs) -> StageData:
        """Accumulate the moments and held-out inputs of a stage."""
        in_features = next(iter(weights.values())).shape[1]
        moments = Moments(in_features)
        train, select = self.tokens.num_train, self.tokens.num_select
        for part in self.chunks(0, train):
            moments.add(inputs(QUANT, part).flatten(0, 1), inputs(FLOAT, part).flatten(0, 1))
        held_float, held_quant = torch.zeros(0, in_features), torch.zeros(0, in_features)
        for part in self.chunks(train, train + select):
            x, seen = inputs(FLOAT, part).flatten(0, 1), inputs(QUANT, part).flatten(0, 1)
            finite_M = torch.isfinite(x.sum(-1)) & torch.isfinite(seen.sum(-1))
            held_float = torch.cat([held_float, x[finite_M]])
            held_quant = torch.cat([held_quant, seen[finite_M]])
        return StageData(weights, moments, held_float, held_quant)


def gather_rows(
    read: Callable[[int, int], F32Array],
    wanted: npt.NDArray[np.int64],
    num_rows: int,
    step: int = 4096,
) -> F32Array:
    """Rows `wanted` (sorted, unique) of a large table, read in runs of `step` rows.

    Raises:
        CheckpointError: a row is not in the table.
    """
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < num_rows:
        raise CheckpointError(
            f"the text holds the token id {wanted[0] if wanted[0] < 0 else wanted[-1]} but the "
            f"model has {num_rows} embeddings; its tokenizer belongs to another model"
        )
    parts = []
    for low in range(0, num_rows, step):
        inside = wanted[(wanted >= low) & (wanted < low + step)]
        if len(inside):
            parts.append(read(low, min(low + step, num_rows))[inside - low])
    return np.concatenate(parts)


def _discard(arrays: tuple[ScratchArray, ScratchArray]) -> None:
    for array in arrays:
        array.discard()
