"""Every setting of a quantization run, in one value that is written into the output."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bcquant.errors import ConfigError
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.tune_options import TuneOptions

ROTATIONS = ("none", "heads", "residual")
OUTPUT_FORMATS = ("gptq", "gptq_v2", "compressed-tensors")


@dataclass(frozen=True)
class SolveOptions:
    """How a solver looks for codes and scales; says nothing about what the bytes mean.

    Attributes:
        scale_search: choose scales (and zeros) by weighted error instead of the range's extremes.
        act_order: visit columns by descending Hessian diagonal, scales fixed beforehand for the
            contiguous groups (static groups; the order never reaches the file). Without it a
            group's scales are fitted when its turn comes, on the error-fed weights.
        damp_percent: share of the mean Hessian diagonal added to the diagonal, 0 < d < 1.
        num_ratios: scale candidates per sign tried by the search.
        refine_sweeps: sweeps of coordinate descent and scale refit on the best candidate; 0 = off.
        refine_damp_percent: damping of the loss that they lower. Larger than the solver's, because
            a descent fits the calibration tokens more closely than one pass of error feedback.
    """

    scale_search: bool = True
    act_order: bool = True
    damp_percent: float = 0.1
    num_ratios: int = 12
    refine_sweeps: int = 4
    refine_damp_percent: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.damp_percent < 1.0:
            raise ConfigError(
                f"damp_percent is {self.damp_percent}; a value between 0 and 1 is needed"
            )
        if not 2 <= self.num_ratios <= 1000:
            raise ConfigError(f"num_ratios is {self.num_ratios}; 2 to 1000 is needed")
        if not 0 <= self.refine_sweeps <= 1000:
            raise ConfigError(f"refine_sweeps is {self.refine_sweeps}; 0 to 1000 is needed")
        if not 0.0 < self.refine_damp_percent < 1.0:
            raise ConfigError(
                f"refine_damp_percent is {self.refine_damp_percent}; between 0 and 1 is needed"
            )


@dataclass(frozen=True)
class CalibOptions:
    """Which text calibrates, and how much of it.

    Attributes:
        text: "builtin", "self", or the path of a file or folder.
        num_tokens: tokens in all, split into train, select (held out, chooses among candidates)
            and report (held out from both, gives the whole-model figures).
        seq_len: tokens per sequence.
    """

    text: str = "builtin"
    num_tokens: int = 16384
    seq_len: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ConfigError(f"--calib-tokens is {self.num_tokens}; at least 1 is needed")
        if self.seq_len < 1:
            raise ConfigError(f"--seq-len is {self.seq_len}; at least 1 is needed")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed is {self.seed}; 0 to 2^63-1 is needed")


@dataclass(frozen=True)
class Recipe:
    """A whole run: format, solver settings, calibration, output form.

    Attributes:
        format: of every module that `overrides` does not name.
        overrides: (full module name, its format): bits that were allocated module by module.
        retarget_strengths: strengths a tried besides 0 in W* = W + a W (dX^T X^) H^-1; () = off.
            With the guard, the best strength between those tried follows.
        retarget_damp_percent: damping of that solve.
        smooth_strengths: with int8 activations, strengths tried for moving outliers of a stage's
            input into its weights, besides leaving it as it is; see `calib.smoothing`.
        rotate: rotation folded into the weights first, which changes no function of the float
            model: "heads" turns each value head's space, "residual" the residual stream too (and
            unties a tied head); see `models.rotated_source`.
        tune: scales, norms and biases of the finished model trained by KL; 0 steps = off.
        guard: keep, per module, the best candidate on held-out tokens; False keeps the last one
            (the ablation benchmark's switch).
    """

    format: QuantFormat = field(default_factory=QuantFormat)
    overrides: tuple[tuple[str, QuantFormat], ...] = ()
    solver: str = "gptq"
    solve: SolveOptions = field(default_factory=SolveOptions)
    calib: CalibOptions = field(default_factory=CalibOptions)
    retarget_strengths: tuple[float, ...] = (0.5, 1.0)
    retarget_damp_percent: float = 0.3
    smooth_strengths: tuple[float, ...] = (0.5, 0.65, 0.8)
    rotate: str = "none"
    tune: TuneOptions = field(default_factory=TuneOptions)
    guard: bool = True
    output: str = "gptq"
    lm_head: bool = False
    keep_arch: bool = False
    max_shard_bytes: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if self.output not in OUTPUT_FORMATS:
            raise ConfigError(
                f"--format is {self.output!r}; one of {', '.join(OUTPUT_FORMATS)} is needed"
            )
        if self.rotate not in ROTATIONS:
            raise ConfigError(
                f"--rotate is {self.rotate!r}; one of {', '.join(ROTATIONS)} is needed"
            )
        if not 0.0 < self.retarget_damp_percent < 1.0:
            raise ConfigError(
                f"retarget_damp_percent is {self.retarget_damp_percent}; between 0 and 1 is needed"
            )
        for strength in self.retarget_strengths:
            if not 0.0 < strength <= 1.0:
                raise ConfigError(f"retarget strength {strength}; 0 < a <= 1 is needed")
        for strength in self.smooth_strengths:
            if not 0.0 < strength <= 1.0:
                raise ConfigError(f"smoothing strength {strength}; 0 < a <= 1 is needed")

    def format_of(self, module: str) -> QuantFormat:
        """Format of a module by its full canonical name."""
        return dict(self.overrides).get(module, self.format)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; equal recipes give equal dicts."""
        return asdict(self)
