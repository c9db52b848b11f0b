"""Between the layer stream and the journal: solve a stage once, make it durable, go on with it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bcquant.calib.layer_stream import StageData, Weights
from bcquant.calib.smoothing import InputProbe, InputScale, choose_input_scale, exact_range
from bcquant.io.digest import digest_arrays
from bcquant.pipeline.guard import ModuleResult, solve_stage
from bcquant.pipeline.resume import Arrays, Journal
from bcquant.pipeline.sealed import EXPONENTS
from bcquant.quant.grid import dequantize
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.manifest import ManifestRow
from bcquant.spec.recipe import Recipe

Progress = Callable[[str, int, int], None]  # (what, modules done, modules in all)


class Sealer:
    """Solves stages and makes them durable; `StageSolver` of the layer stream."""

    def __init__(
        self,
        journal: Journal,
        recipe: Recipe,
        modules: list[str],
        float_dtype: torch.dtype,
        progress: Progress,
    ) -> None:
        """Args: float_dtype: of everything that the output does not quantize."""
        self.journal, self.recipe, self.modules, self.progress = journal, recipe, modules, progress
        self.float_dtype = float_dtype
        self._scales: dict[str, InputScale] = {}

    def tensor(self, module: str) -> QuantizedTensor:
        """A sealed module's weight as it was sealed: nothing is folded into it."""
        arrays = self.journal.recall(module)
        return QuantizedTensor(
            arrays["codes"], arrays["scales"], arrays["zeros"], self.recipe.format_of(module)
        )

    def input_exponents(
        self, modules: list[str], probe: Callable[[], InputProbe]
    ) -> torch.Tensor | None:
        """See `StageSolver.input_exponents`; a sealed module has the last word."""
        for module in modules:
            if module in self.journal.rows:
                found = self.journal.recall(module).get(EXPONENTS)
                return None if found is None else torch.from_numpy(found)
        if not self.recipe.smooth_strengths:
            return None
        seen = probe()
        if not len(seen.held_MK):
            return None
        chosen = choose_input_scale(seen, self.recipe.smooth_strengths, self._range(seen))
        if not bool(chosen.exponents_K.any()):
            return None
        self._scales = dict.fromkeys(modules, chosen)
        return chosen.exponents_K

    def _range(self, probe: InputProbe) -> torch.Tensor:
        """Exponents that the producer of each input column takes over exactly, shape (2, K)."""
        ranges = [exact_range(values, self.float_dtype) for values in probe.stored]
        if probe.producer in self.journal.rows:
            scales_NG = torch.from_numpy(self.tensor(probe.producer).scales_NG.astype("float32"))
            ranges.append(exact_range(scales_NG, torch.float16))
        low_R = torch.stack([r[0] for r in ranges]).amax(0)
        high_R = torch.stack([r[1] for r in ranges]).amin(0)
        return torch.stack([low_R, high_R])[:, probe.producer_K]

    def recall(self, modules: list[str]) -> Weights | None:
        """See `StageSolver.recall`."""
        if any(m not in self.journal.rows for m in modules):
            return None
        self._tell(modules)
        return {m: torch.from_numpy(dequantize(self.tensor(m))) for m in modules}

    def solve(self, stage: StageData) -> Weights:
        """See `StageSolver.solve`; a stage that was cut off is solved again and comes out equal."""
        weights = {}
        for module, result in solve_stage(stage, self.recipe).items():
            if module not in self.journal.rows:
                self._seal(module, result)
            weights[module] = torch.from_numpy(dequantize(self.tensor(module)))
        self._tell(list(weights))
        return weights

    def _seal(self, module: str, result: ModuleResult) -> None:
        q = result.grid.quantized()
        fmt = q.format
        arrays: Arrays = {"codes": q.codes_NK, "scales": q.scales_NG, "zeros": q.zeros_NG}
        note, scale = result.note, self._scales.get(module)
        if scale is not None:
            arrays[EXPONENTS] = scale.exponents_K.numpy()
            low, high = int(scale.exponents_K.min()), int(scale.exponents_K.max())
            moved = f"inputs scaled by 2^{-high} to 2^{-low}, strength {scale.strength:g}"
            note = "; ".join(filter(None, (note, moved)))
        row = ManifestRow(
            module, fmt.bits, fmt.group_size, fmt.symmetric, (q.out_features, q.in_features),
            digest_arrays(arrays), result.candidate, result.losses, result.damp_percent,
            note,
        )  # fmt: skip
        self.journal.seal(row, arrays, result.seconds)

    def _tell(self, modules: list[str]) -> None:
        self.progress(modules[-1], len(self.journal.rows), len(self.modules))
