"""bcquant.calib.dataset: which text, and its cut into sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bcquant.calib import dataset
from bcquant.calib.dataset import builtin_text, calibration_tokens, read_text
from bcquant.errors import ConfigError
from bcquant.spec.recipe import CalibOptions


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"line {i} of the corpus\n" for i in range(2000)), encoding="utf-8")
    return path


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line) > 40}


def test_builtin_parts_share_no_text() -> None:
    # Topics quote each other: split by name alone, 40 % of the evaluation lines were in both.
    calibration, evaluation = (builtin_text(p) for p in ("calibration", "evaluation"))
    held = {" ".join(p.split()) for p in evaluation.split("\n\n")} - {""}
    assert not held & {" ".join(p.split()) for p in calibration.split("\n\n")}
    # Single lines of paragraphs that differ elsewhere remain (3 of 379 in Python 3.11).
    assert len(lines(calibration) & lines(evaluation)) < 0.03 * len(lines(evaluation))


def test_builtin_topics_are_split_by_name_and_none_is_lost() -> None:
    from pydoc_data.topics import topics

    names = sorted(topics)
    assert builtin_text("evaluation") == "\n".join(topics[n] for n in names[4::5])
    everything = lines(builtin_text("calibration")) | lines(builtin_text("evaluation"))
    assert everything == lines("\n".join(topics.values()))


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="'train'"):
        builtin_text("train")


@pytest.mark.parametrize(
    ("num_tokens", "seq_len", "wanted"),
    # (seq_len, train, select, report)
    [
        (16384, 512, (512, 28, 4, 4)), (32768, 512, (512, 56, 8, 8)), (1024, 64, (64, 14, 2, 2)),
        (800, 512, (100, 7, 1, 1)), (100, 512, (12, 8, 1, 1)), (8, 512, (1, 7, 1, 1)),
        (7, 512, (1, 7, 0, 0)), (1, 512, (1, 1, 0, 0)), (65536, 64, (64, 896, 128, 8)),
    ],
)  # fmt: skip
def test_split_counts(num_tokens: int, seq_len: int, wanted: tuple[int, int, int, int]) -> None:
    tokens = calibration_tokens(CalibOptions(num_tokens=num_tokens, seq_len=seq_len), encode)
    found = (tokens.ids_ST.shape[1], tokens.num_train, tokens.num_select, tokens.num_report)
    assert found == wanted
    assert tokens.ids_ST.shape[0] == sum(wanted[1:])
    assert tokens.ids_ST.dtype == np.int64
    assert wanted[0] * (wanted[1] + wanted[2]) >= num_tokens


def test_calibration_and_report_come_from_different_builtin_parts() -> None:
    tokens = calibration_tokens(CalibOptions(num_tokens=2048, seq_len=64), encode)
    used = tokens.num_train + tokens.num_select
    train, evaluation = builtin_text("calibration").encode(), builtin_text("evaluation").encode()
    for i, window in enumerate(tokens.ids_ST):
        assert bytes(window.tolist()) in (train if i < used else evaluation)


def test_a_files_last_tenth_is_kept_for_the_report(text_file: Path) -> None:
    tokens = calibration_tokens(CalibOptions(str(text_file), 1024, 64), encode)
    data = text_file.read_bytes()
    cut = len(data) - len(data) // 10
    used = tokens.num_train + tokens.num_select
    for i, window in enumerate(tokens.ids_ST):
        at = data.find(bytes(window.tolist()))
        assert (at + 64 <= cut) if i < used else (at >= cut)


def test_windows_never_overlap() -> None:
    def numbered(text: str) -> list[int]:
        return list(range(len(text)))

    tokens = calibration_tokens(CalibOptions(num_tokens=4096, seq_len=64), numbered)
    used = tokens.ids_ST[: tokens.num_train + tokens.num_select]
    assert len(np.unique(used)) == used.size


def test_a_seed_gives_the_same_windows_and_another_seed_others() -> None:
    one, two, other = (
        calibration_tokens(CalibOptions(num_tokens=2048, seq_len=64, seed=seed), encode)
        for seed in (3, 3, 4)
    )
    assert np.array_equal(one.ids_ST, two.ids_ST) and one.digest == two.digest
    assert not np.array_equal(one.ids_ST, other.ids_ST) and one.digest != other.digest


def test_digest_covers_the_split(text_file: Path) -> None:
    ids = np.arange(12).reshape(4, 3)
    digests = {dataset._seal(ids, 4 - n, n, 0, "x").digest for n in range(3)}
    assert len(digests) == 3


def test_self_samples_with_the_seed_and_counts() -> None:
    calls = []

    def sample(num: int, seq_len: int, seed: int) -> np.ndarray:
        calls.append((num, seq_len, seed))
        return np.arange(num * seq_len).reshape(num, seq_len)

    tokens = calibration_tokens(CalibOptions("self", 1024, 64, 7), encode, sample)
    assert calls == [(18, 64, 7)]
    assert (tokens.num_train, tokens.num_select, tokens.num_report) == (14, 2, 2)
    assert tokens.origin == "self"


def test_self_without_a_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="--calib self"):
        calibration_tokens(CalibOptions("self"), encode)


def test_too_short_a_text_names_the_file_and_both_counts(text_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.txt: \d+ tokens.*\d+ are needed"):
        calibration_tokens(CalibOptions(str(text_file), 10**6), encode)


def test_text_that_gives_no_token_is_refused(text_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.txt: 0 tokens"):
        calibration_tokens(CalibOptions(str(text_file), 8), lambda text: [])


def test_one_token_needs_one_token_of_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    tokens = calibration_tokens(CalibOptions(str(path), 1), encode)
    assert tokens.ids_ST.tolist() == [[ord("x")]]


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing_here: no such file"):
        read_text(tmp_path / "nothing_here")


def test_text_that_is_not_utf8_names_the_file_and_the_byte(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ConfigError, match=r"latin\.txt: not UTF-8 text at byte 3"):
        read_text(tmp_path)


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"empty\.txt: holds no text"):
        read_text(path)


def test_folder_without_text_names_itself(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text file in this folder"):
        read_text(tmp_path)


def test_folder_is_read_in_name_order_with_subfolders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub" / "c.rst").write_text("third")
    (tmp_path / "image.png").write_bytes(b"\xff")
    assert read_text(tmp_path) == "first\nsecond\nthird"


def test_reading_stops_at_the_limit_even_inside_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_TEXT_BYTES", 7)
    (tmp_path / "a.txt").write_text("abcd")
    (tmp_path / "b.txt").write_text("xyéz")  # é is bytes 3 and 4 of the file, the limit is 3
    (tmp_path / "c.txt").write_bytes(b"\xff")  # never opened
    assert read_text(tmp_path) == "abcd\nxy"
