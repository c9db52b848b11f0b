"""The rows that benchmarks write, and the order in which they measure."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the package

from benchmarks import _rows  # noqa: E402
from benchmarks._timing import Contestant, interleave  # noqa: E402
from benchmarks.bench_kernels import targets  # noqa: E402


def row(**more: object) -> _rows.Row:
    values: dict[str, object] = {"threads": 2, "median_us": 1234.5678, "others_cores": 0.0}
    return _rows.make_row("bcquant", "1.0", "linear_w4", **(values | more))  # type: ignore[arg-type]


def test_row_starts_with_the_promised_fields() -> None:
    found = row(shape=(4096, 11008, 1), group_size=32, gbps=70.123456, ratio_to={"a": 1.234567})
    assert tuple(found)[: len(_rows.FIELDS)] == _rows.FIELDS
    assert (found["K"], found["N"], found["M"]) == (4096, 11008, 1)
    assert (found["median_us"], found["gbps"]) == (1234.6, 70.123)
    assert found["ratio_to"] == {"a": 1.2346}
    assert found["gops"] is None


def test_json_is_a_list_of_rows_and_markdown_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    target = _rows.Target("GEMV", 0.91, 0.9)
    text = _rows.write_results(path, "Title", [row(gbps=1.0), row(gbps=2.0)], [target], ["a note"])
    assert [r["gbps"] for r in json.loads(path.read_text())] == [1.0, 2.0]
    assert path.with_suffix(".md").read_text() == text
    assert "- bcquant: 1.0" in text and "- a note" in text
    assert "holds   GEMV: 0.91 (needed 0.9)" in text


def test_markdown_leaves_out_columns_that_say_nothing() -> None:
    header = next(x for x in _rows.markdown("T", [row()], [], []).splitlines() if x[:1] == "|")
    assert header == "| impl | op | threads | median_us | others_cores |"


def test_target_says_missed_noisy_and_not_measured() -> None:
    assert str(_rows.Target("x", 0.5, 0.9)).startswith("MISSED")
    assert "NOISY" not in str(_rows.Target("x", 0.95, 0.9, 0.1))
    assert str(_rows.Target("x", 0.95, 0.9, 0.8)).endswith("NOISY, others kept 0.8 cores busy")
    assert str(_rows.Target("x", None, 0.9)).startswith("not measured")


def test_kernel_targets_name_the_worst_row() -> None:
    rows = [
        row(shape=(k, n, 128), group_size=g, ratio_to={"ort_level4": ratio})
        for k, n, g, ratio in ((4096, 4096, 32, 2.0), (576, 1536, 128, 1.5), (4096, 11008, 32, 3.0))
    ]
    found = {t.name: t for t in targets(rows) if t.value is not None}
    assert list(found) == ["GEMM M=128, 2 threads, against ort_level4 (worst of 3: 576x1536 g128)"]
    assert next(iter(found.values())).value == 1.5


def test_quick_run_keeps_the_results_of_a_full_one() -> None:
    args = argparse.Namespace(json=None, quick=True)
    assert _rows.RESULTS not in _rows.results_path(args, "kernels.json").parents
    args.quick = False
    assert _rows.results_path(args, "kernels.json") == _rows.RESULTS / "kernels.json"


def test_rounds_alternate_and_first_run_of_a_burst_does_not_count() -> None:
    calls: list[str] = []

    def run(name: str) -> float:
        calls.append(name)
        return 8.0 if calls.count(name) == 1 else 4.0

    both = [Contestant(n, lambda n=n: run(n), units=2) for n in "ab"]  # type: ignore[misc]
    interleave(both, repeat=2)  # 8 s fill any burst, so each burst is one run that counts
    assert "".join(calls) == "aabbbbaa"
    assert [c.samples for c in both] == [[2.0, 2.0], [2.0, 2.0]]
    assert both[0].median_us == 2e6
