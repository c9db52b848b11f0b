"""Tiny exports that are written once; a test that damages one works on its own copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.eval.verify.run import VerifyOptions, verify
from bcquant.spec.quant_format import QuantFormat

Verify = Callable[..., Any]
Make = Callable[..., Path]

# 2 layers of hidden size 64: seconds are spent on starting the programs, not on tokens.
SHORT: dict[str, Any] = {"max_tokens": 192, "seq_len": 64, "new_tokens": 12}
TEXT = " ".join(f"Line {i}: the parser reads {i * i} names and then stops." for i in range(40))


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Source folder of a family, quantized for a target; the same arguments, the same folder."""
    made: dict[str, Path] = {}

    def make(
        family: str = "llama",
        target: str | None = "v1",
        fmt: QuantFormat | None = None,
        dtype: str = "F16",
        **over: Any,
    ) -> Path:
        key = repr((family, target, fmt, dtype, sorted(over.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(family) / "source"
            shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
            make_checkpoint(family, folder, dtype=dtype, **{**shape, **over})
            if target is not None:
                quantize_folder(folder, target, fmt or QuantFormat(4, 32))
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_export(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """An export of a source by the command line; the same arguments give the same one."""
    made: dict[str, Path] = {}

    def make(source: Path, *words: str) -> Path:
        key = repr((source, words))
        if key not in made:
            name = "model.gguf" if words[0] == "gguf" else "model-onnx"
            out = tmp_path_factory.mktemp("export") / name
            assert main(["export", words[0], str(source), "-o", str(out), *words[1:]]) == 0
            made[key] = out
        return made[key]

    return make


@pytest.fixture
def own(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of an export that may be damaged."""

    def copy(export: Path) -> Path:
        target = tmp_path / export.name
        if export.is_dir():
            return Path(shutil.copytree(export, target))
        return Path(shutil.copy(export, target))

    return copy


@pytest.fixture
def run_verify() -> Verify:
    """`verify` on little text; keywords replace options."""

    def run(source: Path, export: Path, **over: Any) -> Any:
        options = VerifyOptions(**{"text": TEXT, **SHORT, **over})
        return verify(source, export, options, lambda what, done, total: None)

    return run
