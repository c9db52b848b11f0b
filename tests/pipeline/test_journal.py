"""What a work folder refuses: other settings, tampered files, garbage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcquant.errors import CheckpointError, ConfigError, ExportError
from bcquant.io.digest import digest_arrays
from bcquant.io.writer import write_safetensors
from bcquant.pipeline.resume import Journal
from bcquant.spec.manifest import ManifestRow

RUN = {"recipe": {"bits": 4, "calib": {"seed": 0}}, "source": {"sha256": {"a": "1"}}}
ARRAYS = {"codes": np.arange(6, dtype=np.uint8).reshape(2, 3)}


def row(module: str = "m") -> ManifestRow:
    return ManifestRow(
        module, 4, -1, True, (2, 3), digest_arrays(ARRAYS), "rtn", {"rtn": 0.5}, None, ""
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder with one sealed module and one finished layer."""
    folder = tmp_path / "out.work"
    with Journal(folder, RUN, restart=False) as journal:
        journal.seal(row(), ARRAYS, {"rtn": 1.5})
        journal.layer_done(1)
    return folder


def module_file(work: Path) -> Path:
    return work / "modules" / "m.safetensors"


def test_reopened_journal_has_what_was_sealed(work: Path) -> None:
    with Journal(work, RUN, restart=False) as journal:
        assert journal.rows == {"m": row()}
        assert (journal.layers_done, journal.whole_model) == (1, None)
        assert journal.seconds == {"m": {"rtn": 1.5}}
        assert np.array_equal(journal.recall("m")["codes"], ARRAYS["codes"])


def test_torn_last_line_is_dropped_and_written_over(work: Path) -> None:
    whole = (work / "journal.jsonl").read_bytes()
    for cut in (b'{"mod', b"{", b'{"layers_done":7}', b"\xff\xfe"):
        (work / "journal.jsonl").write_bytes(whole + cut)
        with Journal(work, RUN, restart=False) as journal:
            assert journal.layers_done == 1
        assert (work / "journal.jsonl").read_bytes() == whole


def test_journal_of_which_only_a_part_of_line_one_was_written_is_new(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"run":{"rec')
    with Journal(tmp_path, RUN, restart=False) as journal:
        assert journal.rows == {}
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == {"run": RUN}


@pytest.mark.parametrize(
    "line",
    [
        b"garbage", b"7", b"null", b"[]", b'"run"', b'{"module":{}}', b"\xff\xfe",
        b'{"module":{"module":"m"},"seconds":{}}', b'{"layers_done":"x"}', b'{"layers_done":null}',
        b'{"whole_model":3}', b"[" * 100_000,
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)  # fmt: skip
@pytest.mark.parametrize("is_first", [True, False])
def test_garbage_is_a_checkpoint_error(work: Path, line: bytes, is_first: bool) -> None:
    path = work / "journal.jsonl"
    lines = path.read_bytes().splitlines()
    lines[0 if is_first else 1] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(CheckpointError, match=r"journal\.jsonl: not a journal.*--restart"):
        Journal(work, RUN, restart=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": {"bits": 3, "calib": {"seed": 0}}}, r"recipe\.bits was 4 and is now 3"),
        ({"recipe": {"bits": 4, "calib": {"seed": 5}}}, r"recipe\.calib\.seed was 0 and is now 5"),
        ({"source": {"sha256": {"a": "2"}}}, r"source\.sha256\.a was 1 and is now 2"),
        ({"versions": {"torch": "9"}}, r"versions was None"),
    ],
)
def test_other_settings_are_named(work: Path, change: dict[str, Any], named: str) -> None:
    before = (work / "journal.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=named):
        Journal(work, {**RUN, **change}, restart=False)
    assert (work / "journal.jsonl").read_bytes() == before


def test_event_of_a_later_version_is_passed_over(work: Path) -> None:
    with (work / "journal.jsonl").open("ab") as file:
        file.write(b'{"comment":"hello"}\n')
    with Journal(work, RUN, restart=False) as journal:
        assert journal.layers_done == 1


def test_restart_drops_the_earlier_run(work: Path) -> None:
    (work / "scratch" / "hidden3.float.f32").write_bytes(b"old")
    with Journal(work, {"recipe": "other"}, restart=True) as journal:
        assert (journal.rows, journal.layers_done) == ({}, 0)
        assert list(journal.scratch.iterdir()) == []
    assert not module_file(work).exists()


def test_restart_of_garbage_begins_again(work: Path) -> None:
    (work / "journal.jsonl").write_bytes(b"garbage\n")
    with Journal(work, RUN, restart=True) as journal:
        assert journal.rows == {}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace(path: Path) -> None:
    write_safetensors(path, {"codes": ARRAYS["codes"].astype(np.int16)})


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "SHA-256 differs"),
        (replace, "SHA-256 differs"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "m.safetensors"),
        (lambda path: path.write_bytes(b""), "m.safetensors"),
        (os.unlink, "missing, though the journal names it"),
    ],
    ids=["bit flipped", "other dtype", "truncated", "empty", "gone"],
)
def test_tampered_module_is_a_checkpoint_error(
    work: Path, damage: Callable[[Path], Any], complaint: str
) -> None:
    damage(module_file(work))
    with Journal(work, RUN, restart=False) as journal, pytest.raises(CheckpointError) as info:
        journal.recall("m")
    assert complaint in str(info.value)


def test_lock_is_held_until_the_journal_is_closed(work: Path) -> None:
    with Journal(work, RUN, restart=False):
        for restart in (False, True):
            with pytest.raises(ConfigError, match="another run is working here"):
                Journal(work, RUN, restart)
        assert module_file(work).exists()
    Journal(work, RUN, restart=False).__exit__()


def test_unfinished_module_files_are_removed(work: Path) -> None:
    stale = work / "modules" / ".m.safetensors.00ff.partial"
    stale.write_bytes(b"half")
    with Journal(work, RUN, restart=False):
        assert not stale.exists()


def test_work_folder_that_is_a_file_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "out.work").write_text("mine")
    with pytest.raises(ExportError, match=r"out\.work: cannot be written"):
        Journal(tmp_path / "out.work", RUN, restart=True)
    assert (tmp_path / "out.work").read_text() == "mine"


def test_full_disk_is_an_export_error_of_the_line_and_not_of_the_end(work: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"journal\.jsonl: writing failed \(No space left"),
        Journal(work, RUN, restart=False) as journal,
    ):
        journal._file.close()
        journal._file = open("/dev/full", "a+b")  # noqa: SIM115
        journal.layer_done(2)
    with Journal(work, RUN, restart=False) as journal:
        assert journal.layers_done == 1
