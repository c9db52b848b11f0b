"""A quantization run from start to end; the only place that knows the order.

source -> calibration tokens -> [layer by layer: observe, solve, seal] -> whole-model figures
       -> checkpoint folder
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bcquant import __version__
from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.layer_stream import QUANT, LayerStream
from bcquant.calib.measure import Head, PairMeter
from bcquant.calib.tunable import SealedModel
from bcquant.errors import BcquantError, ExportError
from bcquant.io.atomic import check_writable
from bcquant.io.json_file import read_json_object
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD
from bcquant.models.precision import fast_float32
from bcquant.models.rotated_source import rotate
from bcquant.models.source import ModelSource, open_model
from bcquant.pipeline.calibration import tokens_for
from bcquant.pipeline.identity import identity
from bcquant.pipeline.output import (
    Layout,
    check_floats,
    choose_layout,
    quantized_modules,
    write_output,
)
from bcquant.pipeline.report import REPORT_NAME, report
from bcquant.pipeline.resume import Arrays, Journal
from bcquant.pipeline.sealed import FoldedModel
from bcquant.pipeline.sealer import Progress, Sealer
from bcquant.pipeline.tune import tune_scales
from bcquant.runtime.tokenizer_export import export_tokenizer
from bcquant.spec.manifest import MANIFEST_NAME, Figures, Manifest, ManifestRow
from bcquant.spec.recipe import Recipe


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: the folder, its manifest, and the report as plain values."""

    folder: Path
    manifest: Manifest
    report: dict[str, Any]


def quantize_model(
    source_path: str | Path,
    out: Path,
    recipe: Recipe,
    restart: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> RunResult:
    """Quantize a checkpoint into `out`; a run that was cut off goes on where it stopped.

    Args:
        out: folder to create; `<out>.work` beside it holds what a later run needs until then.
        progress: called after every stage.
    Raises:
        BcquantError: anything about the input, the settings or the disk; nothing half-written
            appears under `out`.
    """
    work = out.with_name(out.name + ".work")
    if os.path.lexists(out) and (restart or not work.exists()):
        raise _exists(out)
    check_writable(out.parent, 0)
    with (
        open_model(source_path) as opened,
        rotate(opened, recipe.rotate, recipe.calib.seed) as source,
        fast_float32(),
        torch.inference_mode(),
    ):
        layout = choose_layout(source, recipe)
        check_floats(source, recipe, layout)
        tokens = tokens_for(source, recipe.calib)
        fingerprint = _fingerprint(source, recipe, tokens)
        if os.path.lexists(out):
            return _finished_before(out, work, fingerprint)
        with Journal(work, fingerprint, restart) as journal:
            modules = quantized_modules(source, recipe)
            sealer = Sealer(journal, recipe, modules, layout.torch_dtype, progress)
            if journal.whole_model is None:
                _run_layers(source, tokens, layout, sealer)
            sealed = FoldedModel(source, journal, recipe)
            if recipe.tune.steps and journal.tuning is None:
                _tune(source, tokens, layout, sealed, progress)
            manifest = _manifest(journal, fingerprint, [sealed.row(m) for m in modules])
            summary = report(manifest, journal.seconds)
            if journal.tuning is not None:
                summary["tuning"] = journal.tuning
            progress("writing", len(sealer.modules), len(sealer.modules))
            documents = {MANIFEST_NAME: manifest.as_dict(), REPORT_NAME: summary}
            write_output(
                out, source, recipe, layout, sealed, documents,
                lambda folder: export_tokenizer(source.path, folder),
            )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
    return RunResult(out, manifest, summary)


def _exists(out: Path) -> ExportError:
    return ExportError(f"{out}: exists; remove it or choose another output with -o")


def _finished_before(out: Path, work: Path, fingerprint: dict[str, Any]) -> RunResult:
    """The result of a run that was killed between naming its output and dropping its work folder.

    Raises:
        ExportError: `out` is something else.
    """
    try:
        manifest = Manifest.from_dict(read_json_object(out / MANIFEST_NAME))
        summary = read_json_object(out / REPORT_NAME)
    except (BcquantError, OSError, TypeError, KeyError) as error:
        raise _exists(out) from error
    found = manifest.as_dict()
    if any(found[key] != value for key, value in json.loads(json.dumps(fingerprint)).items()):
        raise _exists(out)
    shutil.rmtree(work, ignore_errors=True)
    return RunResult(out, manifest, summary)


def _run_layers(
    source: ModelSource, tokens: CalibrationTokens, layout: Layout, sealer: Sealer
) -> None:
    journal, recipe = sealer.journal, sealer.recipe
    stream = LayerStream(
        source, tokens, journal.scratch, layout.torch_dtype, recipe.format.activation,
        journal.layers_done,
    )  # fmt: skip
    try:
        while stream.layer < source.config.num_layers:
            stream.run_layer(sealer)
            journal.layer_done(stream.layer)
            stream.forget_previous()
        journal.measured(_measure(source, tokens, stream, sealer))
    finally:
        stream.close()


def _measure(
    source: ModelSource, tokens: CalibrationTokens, stream: LayerStream, sealer: Sealer
) -> Figures:
    """Figures of the whole model on the report tokens; quantizes lm_head first if asked to."""
    name = HEAD if source.has(HEAD) else EMBEDDING
    eps = source.config.rms_norm_eps
    weight = stream.source_tensor(name)
    heads = [
        Head(stream.source_tensor(FINAL_NORM), weight, eps),
        Head(stream.stored(FINAL_NORM), weight, eps),
    ]
    if sealer.recipe.lm_head:
        heads[QUANT].head_VC = stream.solve_head(weight, heads, sealer)
    elif source.stored_dtype(name) not in ("F16", "BF16"):
        heads[QUANT].head_VC = stream.stored(name)
    meter = PairMeter()
    first = tokens.num_train + tokens.num_select
    for s in range(first, first + tokens.num_report):
        stream.measure_sequence(s, heads, meter)
    figures = meter.figures() if meter.tokens else {}
    # JSON has no infinity: a model that overflows still gets its report.
    return {key: value if math.isfinite(value) else None for key, value in figures.items()}


def _tune(
    source: ModelSource,
    tokens: CalibrationTokens,
    layout: Layout,
    sealed: FoldedModel,
    progress: Progress,
) -> None:
    """Tune the whole model and make the result durable, with the figures that it now has."""
    journal, recipe = sealed.journal, sealed.recipe

    def stored_float(name: str) -> npt.NDArray[np.float32]:
        values = sealed.changed_float(name)
        values = source.weight(name) if values is None else values
        rounded = torch.from_numpy(values).to(layout.torch_dtype).to(torch.float32)
        return np.asarray(rounded.numpy())

    model = SealedModel(
        sealed.untuned, stored_float, layout.torch_dtype, recipe.format.activation, recipe.lm_head
    )
    tuned = tune_scales(source, tokens, model, recipe.tune, journal.scratch, progress)
    facts = {
        "best_step": tuned.best_step, "kl_before": tuned.kl_before, "kl_after": tuned.kl_after,
        "curve": tuned.curve, "note": tuned.note, "seconds": round(tuned.seconds, 1),
    }  # fmt: skip
    changed: Arrays = {**tuned.scales, **tuned.floats} if tuned.best_step else {}
    journal.seal_tuned(changed, facts)
    if tuned.whole_model:
        journal.measured(dict(tuned.whole_model[1]))


def _fingerprint(source: ModelSource, recipe: Recipe, tokens: CalibrationTokens) -> dict[str, Any]:
    """Everything that the output's bytes depend on."""
    return {
        "recipe": recipe.as_dict(),
        "source": identity(source),
        "calibration": {
            "origin": tokens.origin,
            "digest": tokens.digest,
            "seq_len": tokens.ids_ST.shape[1],
            "train": tokens.num_train,
            "select": tokens.num_select,
            "report": tokens.num_report,
        },
        "versions": {
            "bcquant": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
            "threads": str(torch.get_num_threads()),
        },
    }


def _manifest(journal: Journal, fingerprint: dict[str, Any], rows: list[ManifestRow]) -> Manifest:
    return Manifest(
        __version__,
        fingerprint["recipe"],
        fingerprint["source"],
        fingerprint["calibration"],
        fingerprint["versions"],
        tuple(rows),
        journal.whole_model or {},
    )
