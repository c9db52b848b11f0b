"""The runtime as a library, and packages for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mobile_api import Runtime
from mobile_build import library

from bcquant.models.source import open_model


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """Packages, models and sessions, compiled as for release."""
    return Runtime(library(tmp_path_factory.mktemp("runtime")))


@pytest.fixture(scope="session")
def export_mobile() -> Callable[..., Path]:
    """(folder, path, **options) -> path, after `bcquant export mobile` wrote it."""
    from bcquant.exporters.mobile.job import MobileJob
    from bcquant.exporters.mobile.options import MobileOptions

    def export(folder: Path, path: Path, **options: int) -> Path:
        with open_model(folder) as source:
            job = MobileJob(source, MobileOptions(**options))
            plan = job.validate(lambda *told: None)
            assert not plan.refusals, plan.refusals
            job.write(path, lambda *told: None)
        return path

    return export
