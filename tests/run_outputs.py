"""What tests of quantization runs share: a small shape, and outputs as comparable bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

# Tokens a stage sees at once; few, so that a kill can leave half an array. Sums depend on it.
CHUNK_TOKENS = 32
# Keys of config.json: three layers that quantize in a third of a second.
TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
REPORT = "quant_report.json"


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its command line without -o, files by name, and events in order."""

    argv: list[str]
    files: dict[str, bytes]
    trace: list[str]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an output; the report without its seconds, which no two runs share."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    report = json.loads(files[REPORT])
    for module in report["modules"]:
        assert module.pop("seconds") >= 0
        assert min(module.pop("candidate_seconds").values()) >= 0
    files[REPORT] = json.dumps(report).encode()
    return files


@dataclass(frozen=True)
class Outcome:
    """How a command line ended; status is -9 after a kill, None while the process is stopped."""

    status: int | None
    pid: int
    out: str
    err: str
    trace: list[str] = field(default_factory=list)
