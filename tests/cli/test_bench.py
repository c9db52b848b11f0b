"""`bcquant bench decode`: what it counts, prints and refuses. How fast it is, is not tested."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint
from tiny_package import tiny_package
from tiny_quantized import quantize_folder

from bcquant.cli import bench, main
from bcquant.eval import decode_speed
from bcquant.eval.decode_speed import measure_decode, resident_bytes
from bcquant.kernels.runtime_native import RuntimeOptions, Session, open_package
from bcquant.spec.quant_format import QuantFormat

FEW = ["--prompt-tokens", "20", "--tokens", "5", "--repeats", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` and `m.bcq`."""
    path = tmp_path_factory.mktemp("bench")
    source = make_checkpoint("llama", path / "source", dtype="F16")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    assert main(["export", "mobile", str(source), "-o", str(path / "m.bcq")]) == 0
    return path


def test_json_has_every_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "m.bcq"
    assert main(["bench", "decode", str(path), *FEW, "--cache", "int8", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    asked = (found["prompt_tokens"], found["tokens"], found["repeats"], found["threads"])
    assert asked == (20, 5, 3, 1)
    for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_s"):
        assert 0 < found[name]["lowest"] <= found[name]["median"] <= found[name]["highest"]
    options = RuntimeOptions(kv_type="int8")
    with open_package(path) as package:
        assert found["plan"] == package.plan(25, options)._asdict()
        with package.model(options) as model:
            assert (found["tier"], found["activations"]) == (model.tier, "int8")
    assert found["resident_bytes"] > found["before_bytes"] > 1 << 20


def test_every_repeat_appends_the_prompt_and_then_token_by_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_speed, "_CHUNK_TOKENS", 8)
    append, given = Session.append, []

    def noting(session: Session, ids: list[int]) -> object:
        given.append((session.position, list(ids)))
        return append(session, ids)

    monkeypatch.setattr(Session, "append", noting)
    said: list[tuple[str, int, int]] = []
    measure_decode(folder / "m.bcq", 20, 5, 2, RuntimeOptions(), lambda *told: said.append(told))
    assert len(given) == 3 * (3 + 4)  # one run to warm up, chunks of 8, the first token is free
    one = given[:7]
    assert [position for position, _ in one] == [0, 8, 16, 20, 21, 22, 23]
    assert [len(ids) for _, ids in one] == [8, 8, 4, 1, 1, 1, 1]
    assert given[7:14] == given[14:] == one  # the same work each time
    assert [told[0] for told in said[::7]] == ["warming up", "repeat 1 of 2", "repeat 2 of 2"]
    assert said[6][1:] == (25, 25)


def test_a_checkpoint_is_exported_first_and_nothing_is_left(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["bench", "decode", str(folder / "source"), *FEW]) == 0
    out, err = capsys.readouterr()
    assert "exporting" in err and "temporary package" in err
    for label in ("engine", "prefill", "decode", "first token", "plan", "resident"):
        assert f"\n{label} " in f"\n{out}"
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_tokenizer_is_measured_on_any_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_package().write(tmp_path))
    assert main(["bench", "decode", path, *FEW, "--json"]) == 0  # 20 ids of a vocabulary of 8
    assert json.loads(capsys.readouterr().out)["activations"] == "exact"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "a measurement is missing (decode"),
        (["speed", "MODEL"], "invalid choice: 'speed'"),
        (["decode", "MODEL", "--tokens", "1"], "--tokens is 1; at least 2"),
        (["decode", "MODEL", "--prompt-tokens", "0"], "--prompt-tokens is 0"),
        (["decode", "MODEL", "--repeats", "0"], "--repeats is 0"),
        (["decode", "MODEL", "--threads", "300"], "--threads is 300"),
        (["decode", "MODEL", "--tier", "abacus"], "abacus"),
        (["decode", "MODEL", "--prompt-tokens", "99999"], "99999 prompt and 64 new tokens are"),
        (["decode", "/nonexistent.bcq"], "/nonexistent.bcq"),
        (["decode", "/nonexistent"], "/nonexistent"),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str], named: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder / "m.bcq") if a == "MODEL" else a for a in argv]
    assert main(["bench", *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and named in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if "error" in line]) == 1


def test_help_has_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert "decode" in {verb.name for verb in bench.measurements()}
    assert main(["bench", "decode", "--help"]) == 0
    assert "bcquant bench decode model.bcq --prompt-tokens 1024" in capsys.readouterr().out


def test_ctrl_c_ends_a_measurement_and_its_temporary_package(folder: Path, tmp_path: Path) -> None:
    words = ["bench", "decode", str(folder / "source"), "--prompt-tokens", "9"]
    words += ["--repeats", "1000000", "--tokens", "20"]
    program = f"import tempfile, bcquant.cli as c; tempfile.tempdir = {str(tmp_path)!r}; c.entry()"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/model.bcq")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "bcquant: interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_resident_bytes_of_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert resident_bytes(tmp_path / "none") is None
    (tmp_path / "status").write_text("Name:\tx\nVmRSS:\t 12 kB\n", encoding="ascii")
    assert resident_bytes(tmp_path / "status") == 12 * 1024
