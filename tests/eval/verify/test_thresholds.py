"""docs/formats/certificate.md prints the table of the code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bcquant.eval.verify.thresholds import KINDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "formats" / "certificate.md"


def test_page_holds_the_table_of_the_code() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    columns = [key for key in asdict(KINDS["int8"]) if key not in ("kind", "means")]
    start = lines.index(f"| kind | {' | '.join(columns)} |") + 2
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : start + len(KINDS)]
    ]
    assert [row[0] for row in rows] == list(KINDS)
    for name, *cells in rows:
        limits = asdict(KINDS[name])
        for column, cell in zip(columns, cells, strict=True):
            value = {"yes": True, "no": False}.get(cell)
            assert limits[column] == (float(cell) if value is None else value), (name, column)


def test_looser_arithmetic_has_looser_limits() -> None:
    tight = KINDS["float32"]
    for name in ("float16", "bfloat16", "int8_token", "int8"):
        loose = KINDS[name]
        assert loose.max_error > tight.max_error and loose.top1 < tight.top1
        assert (loose.kl_mean, loose.kl_999, loose.tie) > (tight.kl_mean, tight.kl_999, tight.tie)
