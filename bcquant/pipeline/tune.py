"""Global scale tuning: integers frozen, scales, norms and biases trained by KL to the float model.

What is kept is the state with the lowest KL on held-out sequences, the untouched start among them.
Source: QUANT.md section 3 (G).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.divergence import divergence
from bcquant.calib.forward import final_hidden
from bcquant.calib.measure import HEAD_TOKENS, Head, PairMeter
from bcquant.calib.scratch import ScratchArray
from bcquant.calib.tunable import SealedModel, TunableModel
from bcquant.errors import CheckpointError, ConfigError
from bcquant.io.digest import digest_arrays, sha256_bytes
from bcquant.io.json_file import parse_json_object
from bcquant.io.safetensors import SafetensorsFile
from bcquant.io.writer import remove_partials, write_safetensors
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, canonical_tensors
from bcquant.models.precision import fast_float32
from bcquant.models.source import ModelSource
from bcquant.runtime.memory import available_memory
from bcquant.spec.manifest import Figures
from bcquant.spec.tune_options import TuneOptions

Progress = Callable[[str, int, int], None]  # (what, steps done, steps in all)
STATE_NAME = "tune.safetensors"
BETAS, EPSILON = (0.9, 0.99), 1e-12
_GIB = 1 << 30
_OVERHEAD_BYTES = 512 << 20  # logits, the interpreter, torch


@dataclass(frozen=True)
class Tuned:
    """The best state and what it is worth.

    Attributes:
        scales: module -> float16 scales (N, G).
        floats: canonical tensor name (norms, biases) -> float32, rounded to the stored type.
        best_step: 0 = tuning brought nothing and everything is as it was.
        kl_before, kl_after: mean KL in nats on the held-out select tokens, which chose the state.
        curve: (step, that KL) at every look.
        whole_model: figures of the start and of the best state on the report tokens, see
            `PairMeter.figures`; () if there are none.
        note: why training ended early, "" if it did not.
        seconds: of the process that finished it; the only attribute that reruns do not repeat.
    """

    scales: dict[str, npt.NDArray[np.float16]]
    floats: dict[str, npt.NDArray[np.float32]]
    best_step: int
    kl_before: float
    kl_after: float
    curve: tuple[tuple[int, float], ...]
    whole_model: tuple[Figures, ...]
    note: str
    seconds: float


def tune_scales(
    source: ModelSource,
    tokens: CalibrationTokens,
    sealed: SealedModel,
    options: TuneOptions,
    folder: Path,
    progress: Progress = lambda what, done, total: None,
) -> Tuned:
    """Tune a quantized model; a run that was cut off goes on at its last look and ends the same.

    Args:
        source: the float model.
        tokens: train sequences train, select sequences choose the state, report ones measure it.
        folder: where the state lives; the caller removes it.
        progress: called after every step.
    Raises:
        ConfigError: no steps, no held-out or train sequences, or too little memory.
        CheckpointError: `folder` holds the state of another run.
        ExportError: the state cannot be written.
    """
    if options.steps == 0:
        raise ConfigError("tuning is asked for with 0 steps; at least 1 is needed")
    if not (tokens.num_train and tokens.num_select):
        raise ConfigError(
            f"tuning needs train and held-out sequences; there are {tokens.num_train} and "
            f"{tokens.num_select}, raise --calib-tokens"
        )
    check_memory(source, tokens, sealed, available_memory())
    start_s = time.monotonic()
    # The pipeline runs in inference mode, whose tensors autograd cannot follow.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        fast_float32(),
        _Run(source, tokens, sealed, options, folder) as run,
    ):
        return run.result(progress, start_s)


def needed_memory(source: ModelSource, tokens: CalibrationTokens, sealed: SealedModel) -> int:
    """Bytes that tuning takes at its peak, estimated from shapes."""
    cfg, seq_len = source.config, tokens.ids_ST.shape[1]
    head = math.prod(source.shape(EMBEDDING))
    linears = sum(
        math.prod(shape)
        for name, shape in canonical_tensors(cfg)
        if len(shape) == 2 and name not in (EMBEDDING, HEAD)
    )
    # Scales: value, unit, parameter, gradient, two moments, best, and the step's own copies.
    first = sealed.tensor("model.layers.0.mlp.down_proj").format
    per_weight = 1 + 10 * 4 / (cfg.hidden_size if first.group_size == -1 else first.group_size)
    heads = head * 4 * (4 if sealed.lm_head else 3)
    # What autograd keeps of a block: each norm's input, square and output, heads before and after
    # their rotation, attention's inputs and output, and five arrays of the MLP.
    per_token = 10 * cfg.hidden_size + 5 * (cfg.q_size + cfg.kv_size) + 5 * cfg.intermediate_size
    activations = 4 * per_token * seq_len * cfg.num_layers
    largest = 8 * cfg.hidden_size * cfg.intermediate_size
    return int(linears * per_weight + heads + activations + largest + _OVERHEAD_BYTES)


def check_memory(
    source: ModelSource,
    tokens: CalibrationTokens,
    sealed: SealedModel,
    available_bytes: int | None,
) -> None:
    """Refuse a model that would not fit; None = the system does not say.

    Raises:
        ConfigError: it would not; the message has the numbers.
    """
    needed = needed_memory(source, tokens, sealed)
    if available_bytes is not None and needed > available_bytes:
        raise ConfigError(
            f"--tune holds the whole model: about {needed / _GIB:.1f} GiB are needed but "
            f"{available_bytes / _GIB:.1f} GiB are available; close other programs, lower "
            "--seq-len, or leave --tune out"
        )


@dataclass
class _State:
    """Everything that the next step depends on. Arrays float32, shape (P,)."""

    step: int
    parameters: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    best: torch.Tensor
    best_step: int
    curve: list[tuple[int, float]]
    note: str = ""


class _Run:
    """One tuning. Owns the teacher's hidden states on disk."""

    def __init__(
        self,
        source: ModelSource,
        tokens: CalibrationTokens,
        sealed: SealedModel,
        options: TuneOptions,
        folder: Path,
    ) -> None:
        self.tokens, self.options, self.path = tokens, options, folder / STATE_NAME
        remove_partials(folder)
        used, ids = np.unique(tokens.ids_ST, return_inverse=True)
        self.ids_ST = torch.from_numpy(ids.reshape(tokens.ids_ST.shape))
        self.model = TunableModel(source.config, sealed, used)
        head = source.weight(HEAD if source.has(HEAD) else EMBEDDING)
        own = self.model.head_VC
        if own is not None and np.array_equal(own.numpy(), head):
            head = own.numpy()  # one copy of what may be a quarter of the model
        self.teacher = Head(
            torch.from_numpy(source.weight(FINAL_NORM)),
            torch.from_numpy(head),
            source.config.rms_norm_eps,
        )
        self.fingerprint = self._fingerprint()
        self.wanted_STC: ScratchArray = final_hidden(source, tokens.ids_ST, folder)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.wanted_STC.discard()

    def result(self, progress: Progress, start_s: float) -> Tuned:
        """Train from where an earlier run was, then measure."""
        state = self._load() or self._begin()
        self._train(state, progress)
        start, best = torch.zeros_like(state.best), state.best
        report = self._sequences(2)
        figures = tuple(self._figures(p, report) for p in (start, best)) if len(report) else ()
        scales, floats = self.model.split(self.model.stored(best))
        kls = dict(state.curve)
        return Tuned(
            scales, floats, state.best_step, kls[0], kls[state.best_step], tuple(state.curve),
            figures, state.note, time.monotonic() - start_s,
        )  # fmt: skip

    def _begin(self) -> _State:
        parameters, mean, square, best = (torch.zeros_like(self.model.start_P) for _ in range(4))
        state = _State(0, parameters, mean, square, best, best_step=0, curve=[])
        self._look(state)
        return state

    def _train(self, state: _State, progress: Progress) -> None:
        options = self.options
        rates_P = torch.full_like(self.model.start_P, options.float_rate)
        rates_P[: self.model.num_scales] = options.scale_rate
        while state.step < options.steps and not state.note:
            gradient = self._gradient(state)
            if not bool(torch.isfinite(gradient).all()):
                state.note = f"ended at step {state.step}: the loss is not finite"
                break
            _advance(state, gradient, rates_P, options.rate_share(state.step))
            progress("tuning", state.step, options.steps)
            if state.step % options.check_every == 0 or state.step == options.steps:
                self._look(state)

    def _gradient(self, state: _State) -> torch.Tensor:
        """Gradient of the mean KL over a batch, one sequence at a time."""
        model = self.model
        batch = self._batch(state.step)
        leaves = model.leaves(model.stored(state.parameters))
        head_VC, into_head = model.head(leaves), None
        for s in batch:
            seen = model.normed(leaves, self.ids_ST[s : s + 1])
            wanted = self.teacher.normed(self.wanted_STC.read(s, s + 1))[0]
            found = divergence(
                wanted, self.teacher.head_VC, seen.detach()[0], head_VC, model.sealed.lm_head
            )
            torch.autograd.backward(seen, found.normed_MC.unsqueeze(0))
            if found.head_VC is not None:
                into_head = found.head_VC if into_head is None else into_head.add_(found.head_VC)
        if into_head is not None:
            model.head_gradient(leaves, into_head)
        return model.gradient(leaves).div_(len(batch) * self.ids_ST.shape[1])

    def _batch(self, step: int) -> list[int]:
        """Train sequences of a step: every one once, in an order of its own each round."""
        train = self.tokens.num_train
        size = min(train, max(1, self.options.batch_tokens // self.ids_ST.shape[1]))
        places = range(step * size, (step + 1) * size)
        orders = {
            p // train: np.random.default_rng([self.options.seed, p // train]).permutation(train)
            for p in places
        }
        return [int(orders[p // train][p % train]) for p in places]

    def _look(self, state: _State) -> None:
        """Judge the state on held-out tokens, keep it if it is the best, and save everything."""
        kl = self._figures(state.parameters, self._sequences(1))["kl_mean"]
        best = dict(state.curve).get(state.best_step, math.inf)
        state.curve.append((state.step, kl if kl is not None else math.inf))
        if state.curve[-1][1] < best:
            state.best, state.best_step = state.parameters.clone(), state.step
        self._save(state)

    def _sequences(self, part: int) -> range:
        """Sequences of part 0 train, 1 select, 2 report."""
        sizes = (self.tokens.num_train, self.tokens.num_select, self.tokens.num_report)
        return range(sum(sizes[:part]), sum(sizes[: part + 1]))

    @torch.no_grad()
    def _figures(self, parameters_P: torch.Tensor, sequences: range) -> Figures:
        """Next-token figures of a state, None where they are not finite."""
        model, meter = self.model, PairMeter()
        leaves = model.leaves(model.stored(parameters_P))
        student = Head(leaves[FINAL_NORM], model.head(leaves), self.teacher.eps)
        for s in sequences:
            seen = model.normed(leaves, self.ids_ST[s : s + 1])[0, :-1]
            wanted = self.teacher.normed(self.wanted_STC.read(s, s + 1))[0, :-1]
            targets = torch.from_numpy(self.tokens.ids_ST[s, 1:])
            for first in range(0, len(targets), HEAD_TOKENS):
                part = slice(first, first + HEAD_TOKENS)
                pair = self.teacher.log_probs(wanted[part]), student.log_probs(seen[part])
                meter.add(pair, targets[part])
        return {k: v if math.isfinite(v) else None for k, v in meter.figures().items()}

    def _fingerprint(self) -> str:
        """Digest of everything that the state depends on."""
        settings = f"{asdict(self.options)} {self.tokens.digest} {torch.get_num_threads()}"
        model = digest_arrays({"start": self.model.start_P.numpy()})
        return sha256_bytes(f"{settings} {torch.__version__} {model}".encode())

    def _save(self, state: _State) -> None:
        arrays = {n: getattr(state, n).numpy() for n in ("parameters", "mean", "square", "best")}
        facts = {
            "run": self.fingerprint, "step": state.step, "best_step": state.best_step,
            "curve": [[step, kl if math.isfinite(kl) else None] for step, kl in state.curve],
        }  # fmt: skip
        write_safetensors(self.path, arrays, {"facts": json.dumps(facts)})

    def _load(self) -> _State | None:
        """The state that an earlier run saved.

        Raises:
            CheckpointError: it is damaged or belongs to a run with other settings.
        """
        if not self.path.exists():
            return None
        wrong = f"{self.path}: not a state of this run; run with --restart"
        with SafetensorsFile(self.path) as file:
            facts: dict[str, Any] = parse_json_object(
                file.metadata.get("facts", "{}").encode(), str(self.path)
            )
            if facts.get("run") != self.fingerprint:
                raise CheckpointError(wrong)
            arrays = {n: torch.from_numpy(file.read(n)) for n in file.tensors}
        curve = [(step, math.inf if kl is None else kl) for step, kl in facts["curve"]]
        return _State(
            facts["step"], arrays["parameters"], arrays["mean"], arrays["square"], arrays["best"],
            facts["best_step"], curve,
        )  # fmt: skip


def _advance(state: _State, gradient_P: torch.Tensor, rates_P: torch.Tensor, share: float) -> None:
    """One step of Adam."""
    first, second = BETAS
    state.step += 1
    state.mean.lerp_(gradient_P, 1 - first)
    state.square.lerp_(gradient_P.square_(), 1 - second)
    size = (state.square / (1 - second**state.step)).sqrt_().add_(EPSILON)
    move = (state.mean / (1 - first**state.step)).div_(size).mul_(rates_P)
    state.parameters.sub_(move, alpha=share)
