"""Exporters as the command line runs them, for a model that is only measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bcquant import registry
from bcquant.models.source import ModelSource
from bcquant.spec.export_plan import Exporter, ExportJob


def export_job(key: str, source: ModelSource, flags: Sequence[str]) -> ExportJob:
    """The job of the exporter `key`.

    Args:
        flags: its own, and --allow-lossy.
    """
    exporter: Exporter = registry.load("bcquant.exporters", key, "EXPORTER")
    parser = argparse.ArgumentParser()
    parser.add_argument("--allow-lossy", action="store_true")
    exporter.add_arguments(parser)
    return exporter.prepare(source, exporter.options(parser.parse_args(list(flags))))
