"""One judge for every model: float32 torch on the same tokens, against the float model."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bcquant.calib.dataset import I64Array
from bcquant.calib.forward import final_hidden
from bcquant.calib.measure import HEAD_TOKENS, PairMeter
from bcquant.errors import ConfigError
from bcquant.eval.torch_perplexity import head_input, load_head
from bcquant.io.digest import digest_arrays
from bcquant.models.precision import fast_float32
from bcquant.models.source import F32Array, ModelSource, open_model
from bcquant.runtime.tokenizer import Tokenizer
from bcquant.spec.manifest import Figures

VERSION = 1  # raised when figures of the same tokens would change
WINDOW = 1024  # tokens that are read together
LayerProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class EvalText:
    """A text cut into windows.

    Attributes:
        ids_ST: windows of equal length; the first token of each is not scored.
        digest: SHA-256 of the windows.
    """

    name: str
    ids_ST: I64Array
    digest: str


def eval_text(name: str, text: str, tokenizer: Tokenizer, max_tokens: int) -> EvalText:
    """The first `max_tokens` tokens of a text in whole windows of WINDOW tokens.

    A text or limit below one window gives one shorter window.

    Raises:
        ConfigError: fewer than two tokens.
    """
    # At 16 characters a token there is always enough text; a whole library is not tokenized.
    start = text[: max(1 << 16, 16 * max_tokens)]
    ids = np.asarray(tokenizer.encode(start, add_special=False, parse_special=False), np.int64)
    ids = ids[:max_tokens]
    if len(ids) < 2:
        raise ConfigError(f"text {name!r} has {len(ids)} tokens here; at least 2 are needed")
    length = min(WINDOW, len(ids))
    windows = np.ascontiguousarray(ids[: len(ids) // length * length].reshape(-1, length))
    return EvalText(name, windows, digest_arrays({"ids": windows}))


class Judge:
    """Compares models with a float one, whose final hidden states are computed once.

    Args:
        source: the float model; stays open as long as the judge is used.
        model_digest: names it in the folder of the hidden states.
        folder: where those stay for later runs.
    """

    def __init__(self, source: ModelSource, model_digest: str, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._model_digest = model_digest
        self._head = load_head(source)

    def figures(self, model: Path, text: EvalText, progress: LayerProgress) -> Figures:
        """`PairMeter.figures` of a model on a text; figures that are not finite are None.

        Raises:
            BcquantError: the model cannot be read.
        """
        wanted = self._reference(text, progress)
        meter = PairMeter()
        with (
            open_model(model) as source,
            tempfile.TemporaryDirectory(prefix="bcquant-") as folder,
            fast_float32(),
            torch.inference_mode(),
        ):
            head, seen = load_head(source), head_input(source)
            hidden = final_hidden(source, text.ids_ST, Path(folder), progress)
            for s in range(len(text.ids_ST)):
                targets_T = torch.from_numpy(text.ids_ST[s, 1:])
                before_TC = torch.from_numpy(np.array(wanted[s, :-1]))
                after_TC = hidden.read(s, s + 1)[0, :-1]
                for first in range(0, len(targets_T), HEAD_TOKENS):
                    part = slice(first, first + HEAD_TOKENS)
                    pair = (
                        self._head.log_probs(self._head.normed(before_TC[part])),
                        head.log_probs(seen(head.normed(after_TC[part]))),
                    )
                    meter.add(pair, targets_T[part])
            hidden.close()
        found = meter.figures()
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def _reference(self, text: EvalText, progress: LayerProgress) -> F32Array:
        """Final hidden states of the float model (S, T, C), mapped."""
        path = self._folder / f"{self._model_digest[:16]}-{text.digest[:16]}.npy"
        if not path.exists():
            work = self._folder / "partial"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            with fast_float32(), torch.inference_mode():
                hidden = final_hidden(self._source, text.ids_ST, work, progress)
            shape = (*text.ids_ST.shape, self._source.config.hidden_size)
            kept: F32Array = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                work / "hidden.npy", mode="w+", dtype=np.float32, shape=shape
            )
            for s in range(shape[0]):
                kept[s] = hidden.read(s, s + 1)[0].numpy()
            del kept  # written
            hidden.discard()
            (work / "hidden.npy").rename(path)
            shutil.rmtree(work, ignore_errors=True)
        found: F32Array = np.load(path, mmap_mode="r")
        return found
