"""Scores of a text, and what bcq-run measures."""

from __future__ import annotations

import ctypes as c
import json
import math
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import mobile_api as api
import numpy as np
import pytest
from factory import make_tiny
from mobile_api import Runtime, options
from mobile_build import MOBILE, RELEASE, library, objects, run

from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions

IDS = [(i * 37 + 5) % 96 for i in range(60)]
CONTEXT = 64
ALL = tuple(path.stem for path in sorted((MOBILE / "runtime").glob("*.cpp")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is long enough for `bcq-run --bench`."""
    made = tmp_path_factory.mktemp("measure") / "source"
    return make_tiny("llama", made, "F16", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def package(folder: Path, export_mobile: Callable[..., Path]) -> Path:
    return export_mobile(folder, folder.parent / "m.bcq")


@pytest.fixture(scope="module")
def bcq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, linked by gcc."""
    made = tmp_path_factory.mktemp("bcq_run")
    runtime = library(made, ALL)
    [tool] = objects([MOBILE / "tools/bcq_run.cpp"], RELEASE)[:1]
    run(["gcc", tool, runtime, f"-Wl,-rpath,{made}", "-lm", "-o", made / "bcq-run"])
    return made / "bcq-run"


def score(session: api.Session, ids: Sequence[int]) -> float:
    given = (c.c_int32 * len(ids))(*ids)
    nll = c.c_double(-1)
    lib = session.runtime.lib
    status = lib.bcq_session_score(session.handle, given, c.c_int64(len(ids)), c.byref(nll))
    assert status == api.OK or nll.value == 0
    session.runtime.check(status)
    return nll.value


def expected_nll(folder: Path, ids: Sequence[int]) -> float:
    """From the logits of the Python engine, by NumPy."""
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, "exact"))
    logits = np.empty((len(ids), model.config.vocab_size), np.float32)
    model.reserve(len(ids))
    model.forward(np.array(ids), logits)
    wide = logits.astype(np.float64)
    log_sums = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    rows = np.arange(len(ids) - 1)
    return float((log_sums[:-1] - wide[rows, np.array(ids[1:])]).sum())


@pytest.mark.parametrize("prefill", [1, 7, 512])
def test_a_score_is_that_of_the_python_engine(
    runtime: Runtime, folder: Path, package: Path, prefill: int
) -> None:
    opened = runtime.open(package)
    model = opened.model(options(kv_type=api.KV_F32, prefill_tokens=prefill))
    session = model.session(CONTEXT)
    found = score(session, IDS)
    # float32 logits of about 1, whose sums may be ordered otherwise (1e-6 each, 59 of them).
    assert abs(found - expected_nll(folder, IDS)) < 1e-3
    assert session.position == len(IDS)
    fresh = model.session(CONTEXT)
    fresh.append(IDS)
    logits = session.append([3])
    assert np.abs(logits - fresh.append([3])).max() < 1e-3
    for one in (session, fresh):
        one.destroy()
    model.destroy()
    opened.close()


def test_a_score_goes_on_after_what_is_held(runtime: Runtime, package: Path) -> None:
    opened = runtime.open(package)
    model = opened.model(options(prefill_tokens=1))
    whole, parts = model.session(CONTEXT), model.session(CONTEXT)
    expected = score(whole, IDS[:41])
    first = score(parts, IDS[:21])
    parts.truncate(20)  # the two parts share a token, which the first does not use
    assert first + score(parts, IDS[20:41]) == pytest.approx(expected, rel=1e-12)
    for one in (whole, parts):
        one.destroy()
    model.destroy()
    opened.close()


def test_a_score_that_cannot_be_leaves_the_session(runtime: Runtime, package: Path) -> None:
    opened = runtime.open(package)
    model = opened.model(options())
    session = model.session(20)
    runtime.check(runtime.lib.bcq_session_set_overflow(session.handle, 2, c.c_int64(0)))
    session.append(IDS[:5])
    for ids, status in (
        (IDS[:1], api.BAD_ARGUMENT),
        ([1, 96], api.BAD_ARGUMENT),
        (IDS[:16], api.BAD_SHAPE),
    ):
        with pytest.raises(api.RuntimeFailure) as caught:
            score(session, ids)
        assert caught.value.status == status and session.position == 5
    session.cancel()
    with pytest.raises(api.RuntimeFailure) as caught:
        score(session, IDS[:15])
    assert caught.value.status == api.CANCELLED and session.position == 5
    assert score(session, IDS[:15]) > 0
    assert runtime.lib.bcq_session_score(None, None, c.c_int64(2), None) == api.BAD_ARGUMENT
    session.destroy()
    model.destroy()
    opened.close()


@pytest.mark.parametrize("window", [20, 500])
def test_bcq_run_says_the_perplexity(
    tmp_path: Path, bcq_run: Path, export_mobile: Callable[..., Path], window: int
) -> None:
    folder = make_tiny("llama", tmp_path / "source", "F16", max_position_embeddings=1024)
    characters(folder)
    package = export_mobile(folder, tmp_path / "m.bcq")
    text = "".join(chr(97 + (i * i) % 26) for i in range(100))
    (tmp_path / "text").write_text(text, encoding="utf-8")
    words = ["--ppl", tmp_path / "text", "--context", str(window), "--kv", "f32", "--threads", "1"]
    said = run([bcq_run, package, *words])
    found = re.fullmatch(r"perplexity ([\d.]+) of (\d+) tokens in windows of (\d+)\n", said)
    assert found and (found[2], found[3]) == ("100", str(window))
    ids = [ord(character) - 97 for character in text]
    windows = [ids[at : at + window] for at in range(0, len(ids) - 1, window - 1)]
    nll = sum(expected_nll(folder, some) for some in windows)
    # As above, and 6 decimals of a perplexity of about 100.
    assert float(found[1]) == pytest.approx(math.exp(nll / 99), rel=1e-4)


def characters(folder: Path) -> None:
    """A tokenizer.json in which a letter is a token."""
    vocab = {chr(97 + i): i for i in range(26)} | {f"<{i}>": i for i in range(26, 96)}
    state = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")


def test_bcq_run_measures_its_speed(bcq_run: Path, package: Path) -> None:
    said = run([bcq_run, package, "--bench", "2", "--threads", "1"])
    pattern = r"(\w+), median of 2\n"
    for op, num in (("prefill", 512), ("decode", 128)):
        pattern += rf"{op} {num} tokens in ([\d.]+) s: ([\d.]+) tokens/s\n"
    found = re.fullmatch(pattern, said)
    assert found, said
    for num, at in ((512, 2), (128, 4)):
        # Both numbers are rounded: seconds to 1e-6 of a millisecond or more.
        assert num / float(found[at]) == pytest.approx(float(found[at + 1]), rel=0.01)


@pytest.mark.parametrize(
    ("words", "status", "about"),
    [
        (["--ppl", "none"], 1, "cannot read none"),
        (["--bench", "0"], 2, "cannot have this value"),
        (["--bench", "2", "--context", "600"], 1, "do not fit"),
        (["--bench", "2", "--ids", "1"], 2, "is needed"),
        (["--bench", "2", "--plan"], 2, "is needed"),
        (["--bench", "2", "--check", "some"], 2, "cannot have this value"),
    ],
)
def test_bcq_run_says_why_it_cannot_measure(
    bcq_run: Path, package: Path, words: list[str], status: int, about: str
) -> None:
    command = [str(bcq_run), str(package), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert about in done.stderr


def test_bcq_run_can_leave_the_digests_out(tmp_path: Path, bcq_run: Path, package: Path) -> None:
    damaged = bytearray(package.read_bytes())
    damaged[-3] ^= 1  # in the last section, or the zeros behind it
    (tmp_path / "m.bcq").write_bytes(damaged)
    words = [str(bcq_run), str(tmp_path / "m.bcq"), "--ids", "1,2", "-n", "2"]
    run([*words, "--check", "structure"])
    for check in ([], ["--check", "all"]):
        done = subprocess.run(
            [*words, *check], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
