"""Flags of `bcquant export onnx`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bcquant.errors import ConfigError
from bcquant.exporters.onnx import EXPORTER, default_out
from bcquant.exporters.onnx.options import OnnxOptions


def parse(*argv: str) -> OnnxOptions:
    parser = argparse.ArgumentParser()
    EXPORTER.add_arguments(parser)
    options: OnnxOptions = EXPORTER.options(parser.parse_args(argv))
    return options


def test_defaults() -> None:
    assert parse() == OnnxOptions("ort", "cpu", 4, None, False, 16)


@pytest.mark.parametrize(
    ("argv", "split_mb"),
    [
        (["--target", "web"], 512),
        (["--target", "mobile"], 1500),
        (["--target", "genai"], None),
        (["--target", "web", "--split-mb", "100"], 100),
    ],
)
def test_a_target_implies_a_split(argv: list[str], split_mb: int | None) -> None:
    assert parse(*argv).split_mb == split_mb


@pytest.mark.parametrize(
    ("argv", "variant"),
    [(["--target", "web"], "std"), (["--target", "web", "--variant", "ort"], "ort"), ([], "ort")],
)
def test_a_target_implies_a_variant(argv: list[str], variant: str) -> None:
    assert parse(*argv).variant == variant


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--split-mb", "0"], "--split-mb is 0"),
        (["--variant", "std", "--embedding-bits", "8"], "needs --variant ort"),
        (["--variant", "std", "--target", "genai"], "needs --variant ort"),
        (["--variant", "std", "--accuracy-level", "0"], "session.qdq_matmulnbits_accuracy_level"),
    ],
)
def test_flags_that_do_not_go_together(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(*argv)


def test_default_out() -> None:
    assert default_out(Path("/a/model-gptq")) == Path("model-gptq-onnx")
    assert default_out(Path("/a/model.Q4_1.gguf")) == Path("model.Q4_1-onnx")
    assert default_out(Path("/a/model-v1.5")) == Path("model-v1.5-onnx")
