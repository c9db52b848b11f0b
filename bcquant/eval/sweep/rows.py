"""Finished rows on disk, one file a row, named after everything that its figures need."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bcquant.io.atomic import atomic_write_json
from bcquant.io.digest import sha256_bytes
from bcquant.io.json_file import read_json_object
from bcquant.spec.manifest import Figures


@dataclass(frozen=True)
class Row:
    """One point, judged, or why it is not.

    Attributes:
        texts: text -> figures of `PairMeter`.
        bits_per_weight: of the decoder's Linears, scales and zeros included.
        stored_mb: all weights, 10^6 bytes; embedding and head in float16.
        seconds: of the quantization. peak_mb: MiB of its process.
        problem: "" = it worked; else one sentence, and there are no figures.
    """

    tool: str
    label: str
    settings: dict[str, Any]
    versions: dict[str, str]
    texts: dict[str, Figures] = field(default_factory=dict)
    bits_per_weight: float | None = None
    stored_mb: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    judge_seconds: float | None = None
    machine: str = ""
    note: str = ""
    problem: str = ""

    def increase(self, text: str) -> float | None:
        """Of the perplexity over the float model, in percent; None = not measured or not finite."""
        return self.texts.get(text, {}).get("increase_percent")


class RowStore:
    """A folder of rows."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def find(self, key: dict[str, Any]) -> Row | None:
        """The row of a key, None if it is not there."""
        path = self._path(key)
        return Row(**read_json_object(path)["row"]) if path.exists() else None

    def keep(self, key: dict[str, Any], row: Row) -> None:
        """Store a row that worked."""
        atomic_write_json(self._path(key), {"key": key, "row": asdict(row)})

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        return self._folder / f"{sha256_bytes(text.encode())[:32]}.json"
