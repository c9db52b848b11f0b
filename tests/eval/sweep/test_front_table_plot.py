"""What is shown of a sweep: the Pareto front, the table, the plot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bcquant.errors import ConfigError
from bcquant.eval.sweep import plot
from bcquant.eval.sweep.front import judged, pareto_front
from bcquant.eval.sweep.rows import Row, RowStore
from bcquant.eval.sweep.table import as_document, markdown


def test_front_holds_what_nothing_smaller_beats(made_up: list[Row]) -> None:
    assert [row.label for row in pareto_front(made_up, "en")] == ["a", "c", "d"]


def test_front_takes_one_of_two_at_the_same_size(made_up: list[Row]) -> None:
    worse = Row("hqq", "worse", {}, {}, {"en": {"increase_percent": 6.0}}, 4.25)
    assert [row.label for row in pareto_front([worse, *made_up], "en")] == ["a", "c", "d"]


def test_a_row_without_a_finite_increase_is_not_drawn(made_up: list[Row]) -> None:
    assert [row.label for row in judged(made_up, "en")] == ["a", "b", "c", "d"]


def test_table_marks_the_front_and_says_what_is_missing(made_up: list[Row]) -> None:
    text = markdown(made_up, ["en"], {"model": "tiny"})
    assert "- float perplexity on en: 10.0000" in text
    line = next(line for line in text.splitlines() if line.startswith("| bcquant | a |"))
    assert "**+5.00 %**" in line and "4.250" in line and "90.0 %" in line
    assert "| +9.00 % |" in text and "| not finite |" in text
    assert text.rstrip().endswith("- gptqmodel f: not installed: no gptqmodel")


def test_document_names_the_front(made_up: list[Row]) -> None:
    found = as_document(made_up, ["en"], {"model": "tiny"})
    assert found["pareto_front"] == {"en": ["bcquant a", "llama_cpp c", "bcquant d"]}
    assert len(found["rows"]) == len(made_up)


def test_rows_come_back_by_their_whole_key(tmp_path: Path, made_up: list[Row]) -> None:
    store = RowStore(tmp_path / "rows")
    store.keep({"model": "m", "bits": 4}, made_up[0])
    assert store.find({"bits": 4, "model": "m"}) == made_up[0]
    assert store.find({"bits": 3, "model": "m"}) is None


def test_plot_writes_png_and_svg(tmp_path: Path, made_up: list[Row]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    paths = plot.write_plot(tmp_path / "q", made_up, ["en"], "tiny")
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    svg = paths[1].read_text(encoding="utf-8")
    for name in ("bcquant", "hqq", "llama_cpp", "Pareto front"):
        assert f">{name}</text>" in svg  # text, not outlines of a font
    again = plot.write_plot(tmp_path / "q", made_up, ["en"], "tiny")
    assert again[1].read_text(encoding="utf-8") == svg


def test_plot_without_matplotlib_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'bcquant\[bench\]'"):
        plot.require_matplotlib()
