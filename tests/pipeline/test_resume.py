"""kill -9 at any moment, run again, and the output has the bytes of an undisturbed run.

Runs are forked by crash_server.py, which names the moments. A write that is cut in half, a torn
journal line and a half-removed work folder are among them.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_outputs import REPORT, Reference, contents

# Moments that differ on disk from the one before them; many a run, then one a run.
OFTEN = (
    "AtomicFile.write:half", "AtomicFile.seal:after", "AtomicFile.publish:after",
    "ScratchArray.write:half", "ScratchArray.write:after", "ScratchArray.discard:after",
    "Journal._append:half", "Journal.seal:after", "run_layer:after", "Journal.layer_done:after",
    "forget_previous:after",
)  # fmt: skip
ONCE = (
    "Journal.measured:after", "write_output:before", "write_sharded:after", "os.rename:before",
    "os.rename:after", "rmtree:half",
)  # fmt: skip
KILLS = [(moment, share) for moment in OFTEN for share in (0.0, 0.5, 1.0)]
KILLS += [(moment, 0.0) for moment in ONCE]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != "out")


@pytest.mark.parametrize(("moment", "share"), KILLS)
def test_killed_run_continues_to_the_same_bytes(
    moment: str,
    share: float,
    reference: Reference,
    bcquant_run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    total = reference.trace.count(moment)
    assert total == 1 if moment in ONCE else total >= 3, "the moment's name is out of date"
    nth = 1 + round(share * (total - 1))
    out = tmp_path / "out"
    killed = bcquant_run(*reference.argv, "-o", out, at=moment, nth=nth)
    assert killed.status == -signal.SIGKILL
    is_named = moment in ("os.rename:after", "rmtree:half")
    assert out.exists() == is_named
    if is_named:
        assert contents(out) == reference.files

    finished = bcquant_run(*reference.argv, "-o", out)
    assert (finished.status, finished.err) == (0, "")
    assert contents(out) == reference.files
    assert leftovers(tmp_path) == []


def test_run_that_dies_again_and_again_ends_with_the_same_bytes(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    """Each run lives for 61 more moments, then 67 and so on: no two die at the same place."""
    out = tmp_path / "out"
    deaths = 0
    for lifetime in range(61, 2000, 6):
        outcome = bcquant_run(*reference.argv, "-o", out, at="*", nth=lifetime)
        if outcome.status == 0:
            break
        assert outcome.status == -signal.SIGKILL
        assert not out.exists() or contents(out) == reference.files
        deaths += 1
    assert deaths >= 5, "the moments are too few for this test to show anything"
    assert contents(out) == reference.files
    assert leftovers(tmp_path) == []


def test_a_resumed_run_solves_nothing_twice(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="write_output:before").status == -signal.SIGKILL
    trace = bcquant_run(*argv).trace
    assert "Journal.seal:after" not in trace
    assert "run_layer:after" not in trace


def test_ctrl_c_exits_130_and_the_run_continues(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    for moment, nth in (("Journal.seal:after", 9), ("write_sharded:after", 1)):
        stopped = bcquant_run(*argv, at=moment, nth=nth, signal=signal.SIGINT)
        assert stopped.status == 130
        assert stopped.err == "bcquant: interrupted; the same command goes on from here\n"
        assert leftovers(tmp_path) == ["out.work"]  # the half-assembled output is gone
        assert not out.exists()
    assert bcquant_run(*argv).status == 0
    assert contents(out) == reference.files


def test_second_process_is_refused_while_the_first_works(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    first = bcquant_run(*argv, at="Journal.seal:after", nth=4, signal=signal.SIGSTOP)
    assert first.status is None
    try:
        for flags in ([], ["--restart"]):
            second = bcquant_run(*argv, *flags)
            assert second.status == 2
            assert second.err.count("\n") == 1
            assert "out.work: another run is working here" in second.err
    finally:
        first = bcquant_run(**{"continue": first.pid})
    assert first.status == 0
    assert contents(out) == reference.files


def test_finished_output_whose_work_folder_is_left_is_not_taken_for_another_run(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="os.rename:after").status == -signal.SIGKILL
    for flags in (["--bits", "8"], ["--restart"]):
        other = bcquant_run(*argv, *flags)
        assert other.status == 2
        assert f"{out}: exists" in other.err
        assert leftovers(tmp_path) == ["out.work"]
    assert contents(out) == reference.files
    report = json.loads(bcquant_run(*argv).out)
    assert report["whole_model"] == json.loads(reference.files[REPORT])["whole_model"]
    assert leftovers(tmp_path) == []
    assert bcquant_run(*argv).status == 2  # now it is an output like any other


def test_other_flags_are_refused_and_restart_begins_again(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="Journal.layer_done:after").status == -signal.SIGKILL
    for flags, named in (
        (["--bits", "8"], "recipe.format.bits was 4 and is now 8"),
        (["--calib", "builtin"], "calibration.digest was"),
        (["--seed", "1"], "recipe.calib.seed was 0 and is now 1"),
    ):
        refused = bcquant_run(*argv, *flags)
        assert refused.status == 2
        assert refused.err.count("\n") == 1
        assert named in refused.err
        assert "--restart" in refused.err
    restarted = bcquant_run(*argv, "--restart")
    assert restarted.status == 0
    assert restarted.trace.count("Journal.seal:after") == reference.trace.count(
        "Journal.seal:after"
    )
    assert contents(out) == reference.files


def test_tampered_seal_ends_the_run_with_one_line(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="write_output:before").status == -signal.SIGKILL
    path = tmp_path / "out.work" / "modules" / "model.layers.1.mlp.up_proj.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused = bcquant_run(*argv)
    assert refused.status == 2
    assert "up_proj.safetensors: not what was sealed (SHA-256 differs)" in refused.err
    assert leftovers(tmp_path) == ["out.work"]
    assert not out.exists()


def test_partial_folder_of_a_killed_run_is_removed(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="os.rename:before").status == -signal.SIGKILL
    assert leftovers(tmp_path) == ["out.partial", "out.work"]
    (tmp_path / "out.partial" / "stale.bin").write_bytes(b"from another version")
    assert bcquant_run(*argv).status == 0
    assert contents(out) == reference.files
    assert leftovers(tmp_path) == []


def test_restart_that_was_killed_before_it_removed_anything(
    reference: Reference, bcquant_run: Callable[..., Any], tmp_path: Path
) -> None:
    """It empties the journal first: files that no line names are written over."""
    out = tmp_path / "out"
    argv = [*reference.argv, "-o", out]
    assert bcquant_run(*argv, at="run_layer:after", nth=2).status == -signal.SIGKILL
    (tmp_path / "out.work" / "journal.jsonl").write_bytes(b"")
    assert bcquant_run(*argv).status == 0
    assert contents(out) == reference.files


@pytest.mark.parametrize("changed", ["config.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("as_file", [False, True])
def test_source_that_changed_meanwhile_is_noticed(
    changed: str,
    as_file: bool,
    reference: Reference,
    bcquant_run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    verb, model, *flags = reference.argv
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    given = copy / "model.safetensors" if as_file else copy
    argv = [verb, given, *flags, "-o", tmp_path / "out"]
    assert bcquant_run(*argv, at="Journal.seal:after").status == -signal.SIGKILL
    data = (copy / changed).read_bytes()
    last = b" }" if changed.endswith(".json") else bytes([data[-1] ^ 1])
    (copy / changed).write_bytes(data[:-1] + last)
    refused = bcquant_run(*argv)
    assert refused.status == 2
    assert f"source.sha256.{changed} was" in refused.err
