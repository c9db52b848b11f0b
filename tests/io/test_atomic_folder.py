from __future__ import annotations

from pathlib import Path

import pytest

from bcquant.errors import ExportError
from bcquant.io.atomic_folder import atomic_folder, refuse_existing


def test_folder_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with atomic_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert (out / "a").read_text() == "1"


def test_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_empty_folder_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "out" / "a").is_file()


@pytest.mark.parametrize("kind", ["file", "full", "dangling"])
def test_what_is_there_is_never_touched(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "full":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"out: exists already; remove it or choose another -o"):
        refuse_existing(out)
    with pytest.raises(ExportError, match="exists already"), atomic_folder(out):
        pytest.fail("the block must not run")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ExportError, match="a part of the path is a file"),
        atomic_folder(tmp_path / "file" / "out"),
    ):
        pytest.fail("the block must not run")
