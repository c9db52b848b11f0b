"""mobile/examples as its README says to build it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
from factory import make_tiny
from mobile_build import MOBILE, RELEASE, library, objects, run

from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.tokenizer import open_tokenizer

ALL = tuple(path.stem for path in sorted((MOBILE / "runtime").glob("*.cpp")))
PROMPT = "héllo 你好"


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, linked by gcc."""
    folder = tmp_path_factory.mktemp("hello")
    runtime = library(folder, ALL)
    [made] = objects([MOBILE / "examples/hello.cpp"], RELEASE)[:1]
    run(["gcc", made, runtime, f"-Wl,-rpath,{folder}", "-o", folder / "hello"])
    return folder / "hello"


def test_hello_prints_the_text_of_the_python_engine(
    tmp_path: Path, hello: Path, export_mobile: Callable[..., Path]
) -> None:
    folder = tiny_tokenizers.sentencepiece_folder(tmp_path / "source", add_bos=True)
    make_tiny("llama", folder, "F16", vocab_size=384)
    path = export_mobile(folder, tmp_path / "m.bcq")
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, "exact"))
    model.reserve(256)
    tokenizer = open_tokenizer(folder)
    ids = tokenizer.encode(PROMPT)
    stream = tokenizer.stream()
    said = ""
    for _ in range(32):
        best = int(np.argmax(model.last_logits(np.array(ids))))
        said, ids = said + stream.push(best), [best]
    # Caches of float16 may round a near tie the other way; the factory's logits are far apart.
    assert run([hello, path, PROMPT]) == said + "\n"


def test_hello_is_short() -> None:
    lines = (MOBILE / "examples/hello.cpp").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60  # what its README promises


def test_hello_says_what_is_wrong(tmp_path: Path, hello: Path) -> None:
    words = [str(hello), str(tmp_path / "none.bcq"), "a"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "none.bcq" in done.stderr
