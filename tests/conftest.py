"""Settings that every test runs under, and the fixtures that several parts share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any library reads them: no test reaches a network, and tiny matrices are multiplied on one
# thread (on a busy machine two that spin for each other took 8 s where one took 2).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Same examples in every run, and no deadline: a busy machine is not a failure.
settings.register_profile("bcquant", deadline=None, derandomize=True, database=None)
settings.load_profile("bcquant")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct as `bcquant demo` caches it; never downloads."""
    from bcquant.io.demo_model import cached_demo_model

    path = cached_demo_model()
    if path is None:
        pytest.skip("the demo model is not in the cache; `bcquant demo` fetches it")
    return path
