"""Calibration and evaluation text, and its cut into sequences of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bcquant.errors import ConfigError
from bcquant.spec.recipe import CalibOptions

I64Array = npt.NDArray[np.int64]

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text", ".jsonl", ".json", ".csv", ".html", ".py")
MAX_TEXT_BYTES = 256 * 1024**2  # read at most this much of a folder; far beyond any calibration
EVALUATION_EVERY = 5  # every fifth topic of the builtin text is kept for evaluation
REPORT_SHARE = 10  # the last tenth of a user's text is kept for the whole-model figures


@dataclass(frozen=True)
class CalibrationTokens:
    """Sequences of equal length: train first, then select, then report.

    Attributes:
        ids_ST: int64, shape (S, T).
        num_train: sequences that build the Hessians.
        num_select: held-out sequences that choose among candidates.
        num_report: sequences seen by neither, for the whole-model figures.
        origin: what the text was, for the report.
        digest: SHA-256 of ids and split.
    """

    ids_ST: I64Array
    num_train: int
    num_select: int
    num_report: int
    origin: str
    digest: str


def builtin_text(part: str) -> str:
    """English reference text that ships with Python: `pydoc_data.topics`.

    Args:
        part: "calibration" or "evaluation". No topic is in both, and neither is a paragraph: many
            topics quote others (42 % of the evaluation part's text is in calibration topics), so
            calibration leaves out the paragraphs that evaluation holds.
    """
    from pydoc_data.topics import topics

    if part not in ("calibration", "evaluation"):
        raise ConfigError(
            f"builtin text has no part {part!r}; 'calibration' or 'evaluation' is needed"
        )
    names = sorted(topics)
    evaluation = names[EVALUATION_EVERY - 1 :: EVALUATION_EVERY]
    held_out = "\n".join(topics[name] for name in evaluation)
    if part == "evaluation":
        return held_out
    held = {" ".join(paragraph.split()) for paragraph in held_out.split("\n\n")}
    rest = "\n".join(topics[name] for name in names if name not in set(evaluation))
    return "\n\n".join(p for p in rest.split("\n\n") if " ".join(p.split()) not in held)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, or of all text files of a folder in name order.

    Raises:
        ConfigError: nothing there, not UTF-8, or empty; the message names the file.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in TEXT_SUFFIXES)
        if not files:
            raise ConfigError(
                f"{path}: no text file in this folder; "
                f"files ending in {', '.join(TEXT_SUFFIXES)} are read"
            )
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(
            f"{path}: no such file or folder; give a text file, a folder, or 'builtin'"
        )
    parts: list[str] = []
    room = MAX_TEXT_BYTES
    for file in files:
        try:
            data = file.read_bytes()[:room] if file.stat().st_size <= room else _head(file, room)
            parts.append(data.decode("utf-8", errors="strict" if len(data) < room else "ignore"))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{file}: not UTF-8 text at byte {error.start}; "
                "convert it, or take it out of the folder"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"{file}: cannot be read ({error.strerror}); check the path"
            ) from error
        room -= len(data)
        if room <= 0:
            break
    text = "\n".join(parts)
    if not text.strip():
        raise ConfigError(f"{path}: holds no text; calibration and evaluation need some")
    return text


def _head(file: Path, num_bytes: int) -> bytes:
    with file.open("rb") as handle:
        return handle.read(num_bytes)


def calibration_tokens(
    options: CalibOptions,
    encode: Callable[[str], list[int]],
    sample: Callable[[int, int, int], I64Array] | None = None,
) -> CalibrationTokens:
    """Cut calibration text into sequences.

    Args:
        encode: text to ids, without special tokens.
        sample: (num_sequences, seq_len, seed) -> ids (S, T) drawn from the model, for "self".
    Raises:
        ConfigError: the text is too short for what was asked, or "self" without `sample`.
    """
    seq_len = min(options.seq_len, max(1, options.num_tokens // 8))
    num = -(-options.num_tokens // seq_len)
    num_select = num // 8
    num_report = min(8, num // 8)
    if options.text == "self":
        if sample is None:
            raise ConfigError(
                "--calib self: this model cannot be sampled from; use 'builtin' or a path"
            )
        ids = sample(num + num_report, seq_len, options.seed)
        return _seal(ids, num - num_select, num_select, num_report, "self")
    if options.text == "builtin":
        train_text, report_text = builtin_text("calibration"), builtin_text("evaluation")
        origin = "builtin (pydoc_data.topics)"
    else:
        text = read_text(Path(options.text))
        cut = len(text) - len(text) // REPORT_SHARE
        train_text, report_text = text[:cut], text[cut:]
        origin = options.text
    used = _windows(train_text, encode, num, seq_len, options.seed, origin, "--calib-tokens")
    report = _windows(report_text, encode, num_report, seq_len, options.seed, origin, "the report")
    return _seal(np.concatenate([used, report]), num - num_select, num_select, num_report, origin)


def _windows(
    text: str,
    encode: Callable[[str], list[int]],
    num: int,
    seq_len: int,
    seed: int,
    origin: str,
    purpose: str,
) -> I64Array:
    """`num` windows of `seq_len` tokens of a text, chosen by seed; (num, seq_len)."""
    if num == 0:
        return np.zeros((0, seq_len), np.int64)
    # At 16 bytes a token there is always enough text; tokenizing a whole library is not needed.
    ids = np.asarray(encode(text[: max(1 << 22, num * seq_len * 16)]), np.int64)
    have = len(ids) // seq_len
    if have < num:
        raise ConfigError(
            f"{origin}: {len(ids)} tokens of text for {purpose}, but {num * seq_len} are needed; "
            "give more text, or lower --calib-tokens or --seq-len"
        )
    chosen = np.random.default_rng(seed).permutation(have)[:num]
    return np.stack([ids[c * seq_len : (c + 1) * seq_len] for c in chosen])


def _seal(ids: I64Array, train: int, select: int, report: int, origin: str) -> CalibrationTokens:
    ids = np.ascontiguousarray(ids, np.int64)
    state = hashlib.sha256(f"{ids.shape} {train} {select} {report}".encode())
    state.update(ids.tobytes())
    return CalibrationTokens(ids, train, select, report, origin, state.hexdigest())
