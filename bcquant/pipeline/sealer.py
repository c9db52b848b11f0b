"""Between the layer stream and the journal: solve a stage once, make it durable, go on with it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bcquant.calib.layer_stream import StageData, Weights
from bcquant.io.digest import digest_arrays
from bcquant.pipeline.guard import ModuleResult, solve_stage
from bcquant.pipeline.resume import Arrays, Journal
from bcquant.quant.grid import dequantize
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.manifest import ManifestRow
from bcquant.spec.recipe import Recipe

Progress = Callable[[str, int, int], None]  # (what, modules done, modules in all)


class Sealer:
    """Solves stages and makes them durable; `StageSolver` of the layer stream."""

    def __init__(
        self, journal: Journal, recipe: Recipe, modules: list[str], progress: Progress
    ) -> None:
        self.journal, self.recipe, self.modules, self.progress = journal, recipe, modules, progress

    def tensor(self, module: str) -> QuantizedTensor:
        """A sealed module's canonical weight."""
        arrays = self.journal.recall(module)
        return QuantizedTensor(
            arrays["codes"], arrays["scales"], arrays["zeros"], self.recipe.format_of(module)
        )

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
        row = ManifestRow(
            module, fmt.bits, fmt.group_size, fmt.symmetric, (q.out_features, q.in_features),
            digest_arrays(arrays), result.candidate, result.losses, result.damp_percent,
            result.note,
        )  # fmt: skip
        self.journal.seal(row, arrays, result.seconds)

    def _tell(self, modules: list[str]) -> None:
        self.progress(modules[-1], len(self.journal.rows), len(self.modules))
