"""The sweep: which points, what is known already, make, judge, keep."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bcquant.errors import BcquantError, ConfigError
from bcquant.eval.perplexity import evaluation_text
from bcquant.eval.sweep import judge, sizes
from bcquant.eval.sweep.inputs import Inputs
from bcquant.eval.sweep.judge import Judge, eval_text
from bcquant.eval.sweep.point import MakeJob, Point, Speed, Tool, Wish, find_tool
from bcquant.eval.sweep.process import MAIN, run_child, versions
from bcquant.eval.sweep.rows import Row, RowStore
from bcquant.io.digest import sha256_bytes, sha256_file
from bcquant.models.source import ModelSource, open_model
from bcquant.pipeline.calibration import tokens_for
from bcquant.pipeline.identity import identity
from bcquant.runtime.engine_choice import physical_cores
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.recipe import CalibOptions

Progress = Callable[[str, int, int], None]  # what, points done, points
Say = Callable[[str], None]


@dataclass(frozen=True)
class SweepOptions:
    """A whole sweep.

    Attributes:
        texts: name -> file, folder or "builtin" to judge on.
        calib: what all that calibrate read.
        tools: keys, bcquant among them or not.
        pythons: tool -> its interpreter; this one for those that are not named.
        eval_tokens: of each text.
        match: only points whose name starts with one of these; () = all.
        measures_speed: time the runtimes as well.
    """

    texts: dict[str, str]
    calib: CalibOptions
    wish: Wish
    tools: tuple[str, ...]
    pythons: dict[str, Path]
    eval_tokens: int
    match: tuple[str, ...] = ()
    measures_speed: bool = True


def run_sweep(model: str, options: SweepOptions, out: Path, progress: Progress) -> Iterator[Row]:
    """Every point as a row, in order; those that `out` has already cost nothing.

    A killed sweep goes on where it was: finished rows stay in `out/rows`, the float model's hidden
    states in `out/reference`, and an unfinished quantization of bcquant in `out/work`.

    Raises:
        BcquantError: the float model, a text or the calibration is refused. What goes wrong with
            one point is its row's `problem`.
    """
    points = planned(options)
    with open_model(model) as source:
        progress("reading the model", 0, len(points))
        sweep = _Sweep(source, options, out)
        for i, point in enumerate(points):
            progress(point.name, i, len(points))

            def say(what: str, name: str = point.name, i: int = i) -> None:
                progress(f"{name}: {what}", i, len(points))

            yield sweep.row(point, say)
        progress("done", len(points), len(points))
        sweep.clean_up()


def planned(options: SweepOptions) -> list[Point]:
    """The points of a sweep. ConfigError: none."""
    points = [
        Point(key, label, settings)
        for key in options.tools
        for label, settings in find_tool(key).points(options.wish)
    ]
    if options.match:
        points = [p for p in points if p.name.startswith(options.match)]
    if not points:
        raise ConfigError("no point is left to measure; give more --bits, --peers or --match")
    return points


def machine() -> str:
    """Number of cores and their name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models) or physical_cores()} x {models[0] if models else platform.processor()}"


class _Sweep:
    """What all points share: the judge, the inputs and the rows on disk."""

    def __init__(self, source: ModelSource, options: SweepOptions, out: Path) -> None:
        self._options, self._work = options, out / "work"
        tokenizer = open_tokenizer(source.path)
        _refuse_seen(options)
        self._texts = [
            eval_text(name, evaluation_text(where), tokenizer, options.eval_tokens)
            for name, where in options.texts.items()
        ]
        tokens = tokens_for(source, options.calib)
        self._model_digest = digest_of(identity(source)["sha256"])
        inputs = self._work / f"inputs-{digest_of([self._model_digest, tokens.digest])[:16]}"
        inputs.mkdir(parents=True, exist_ok=True)
        self._inputs = Inputs(source, options.calib, tokens, inputs)
        self._rows = RowStore(out / "rows")
        self._judge = Judge(source, self._model_digest, out / "reference")
        self._threads = physical_cores()

    def row(self, point: Point, say: Say) -> Row:
        """One point, from the disk or measured now."""
        tool = find_tool(point.tool)
        python = self._options.pythons.get(tool.key, Path(sys.executable))
        found = versions(python, tool.distributions)
        row = Row(
            point.tool, point.label, point.settings,
            {name: version for name, version in found.items() if version is not None},
            machine=machine(),
        )  # fmt: skip
        missing = [name for name, version in found.items() if version is None]
        if missing:
            reason = f"{python} has no {', '.join(missing)}; install it, or name an interpreter "
            return replace(
                row, problem=f"not installed: {reason}that has it with --python {tool.key}=PATH"
            )
        key = self._key(tool, row)
        known = self._rows.find(key)
        if known is not None:
            return known
        folder = self._work / digest_of(key)[:16]
        try:
            row = self._measured(tool, row, python, folder, say)
        except BcquantError as error:
            return replace(row, problem=f"failed: {error}")
        self._rows.keep(key, row)
        shutil.rmtree(folder, ignore_errors=True)
        return row

    def clean_up(self) -> None:
        """Drop the inputs; the folder of a failed point stays, for its log."""
        shutil.rmtree(self._inputs.folder, ignore_errors=True)

    def _key(self, tool: Tool, row: Row) -> dict[str, Any]:
        """Everything that a row's figures depend on, the machine left out."""
        children = MAIN.parent
        calib = {**asdict(self._options.calib), "text": self._inputs.tokens.digest}
        return {
            "model": self._model_digest,
            "tool": row.tool,
            "settings": row.settings,
            "versions": row.versions,
            "identity": tool.identity(),
            "children": {c: sha256_file(children / f"run_{c}.py") for c in tool.children},
            "calibration": calib,
            "texts": {text.name: text.digest for text in self._texts},
            "judge": judge.VERSION,
            "speed": self._options.measures_speed,
        }

    def _measured(self, tool: Tool, row: Row, python: Path, folder: Path, say: Say) -> Row:
        if not tool.resumes:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

        def run(child: str, job: dict[str, Any]) -> dict[str, Any]:
            return run_child(python, child, job, folder, _counted("quantizing", say))

        job = MakeJob(row.settings, self._inputs, folder, run, python, self._threads)
        made = tool.make(job)
        start = time.monotonic()
        with open_model(made.model) as source:
            bits = sizes.decoder_bits(source) if made.decoder_bits is None else made.decoder_bits
            per_weight = bits / sizes.num_decoder_weights(source)
        stored = made.stored_bytes
        row = replace(
            row,
            bits_per_weight=round(per_weight, 4),
            stored_mb=(sizes.stored_bytes(made.model) if stored is None else stored) / 1e6,
            seconds=round(made.seconds, 1),
            peak_mb=None if made.peak_mb is None else round(made.peak_mb, 1),
            texts={
                text.name: self._judge.figures(
                    made.model, text, _counted(f"judging on {text.name}", say)
                )
                for text in self._texts
            },
        )
        row = replace(row, judge_seconds=round(time.monotonic() - start, 1))
        if made.speed is None or not self._options.measures_speed:
            return row
        say("timing its runtime")
        return _timed(row, made.speed)


def _timed(row: Row, measure: Callable[[], Speed]) -> Row:
    try:
        speed = measure()
    except BcquantError as error:
        return replace(row, note=f"no speed: {error}")
    return replace(
        row,
        prefill_tokens_per_s=round(speed.prefill_tokens_per_s, 1),
        decode_tokens_per_s=round(speed.decode_tokens_per_s, 1),
    )


def _counted(what: str, say: Say) -> Callable[[int, int], None]:
    return lambda done, total: say(f"{what} {done}/{total}")


def _refuse_seen(options: SweepOptions) -> None:
    """A text that calibrates is no text to judge on; "builtin" has a part for each."""
    if options.calib.text in ("builtin", "self"):
        return
    calib = evaluation_text(options.calib.text)
    for name, where in options.texts.items():
        if where != "builtin" and evaluation_text(where) == calib:
            raise ConfigError(
                f"--text {name}: it is the calibration text, so its figures would flatter; judge "
                "on another one"
            )


def digest_of(value: Any) -> str:
    """Hex SHA-256 of plain values."""
    return sha256_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
