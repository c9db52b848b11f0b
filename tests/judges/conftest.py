"""Settings under which the judges run, and source models that are written once."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judges.harness import SHAPE
from tiny_checkpoint import make_checkpoint

MakeSource = Callable[..., Path]


@pytest.fixture(scope="session")
def make_source(tmp_path_factory: pytest.TempPathFactory) -> MakeSource:
    """Float source folder of a family and dtype; the same arguments give the same folder."""
    made: dict[str, Path] = {}

    def make(family: str, dtype: str = "F16", **over: Any) -> Path:
        key = repr((family, dtype, sorted(over.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{dtype}") / "source"
            made[key] = make_checkpoint(family, folder, dtype=dtype, **{**SHAPE, **over})
        return made[key]

    return make


@pytest.fixture(scope="module", autouse=True)
def judges_temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """gptqmodel makes a temporary folder per model and leaves it there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("judge")))
        yield


@pytest.fixture(scope="module")
def gptqmodel() -> Iterator[Any]:
    """The package. Its kernels run eagerly: compiling them takes a minute and changes no rule."""
    import torch._dynamo

    module = pytest.importorskip("gptqmodel", reason="gptqmodel, the judge, is not installed")
    with torch._dynamo.config.patch(disable=True):
        yield module
        gc.collect()  # its garbage warns; here, under the module's own filters
