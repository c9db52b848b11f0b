"""`bcquant export mobile`: a package for phones, browsers and small machines, `NAME.bcq`."""

from __future__ import annotations

from pathlib import Path

from bcquant.models.source import ModelSource
from bcquant.spec.export_plan import Exporter, ExportJob

from .options import MobileOptions, add_arguments, options_of


def default_out(source: Path) -> Path:
    """`NAME.bcq` in the current folder."""
    name = source.stem if source.is_file() else source.resolve().name
    return Path(f"{name}.bcq")


def prepare(source: ModelSource, options: MobileOptions) -> ExportJob:
    """The job of one open checkpoint."""
    from .job import MobileJob

    return MobileJob(source, options)


EXPORTER = Exporter(
    name="mobile",
    help="write one mapped package for phones, browsers and small machines",
    add_arguments=add_arguments,
    options=options_of,
    default_out=default_out,
    prepare=prepare,
    examples="""
    bcquant export mobile model-gptq -o model.bcq
    bcquant export mobile model-gptq --split-mb 1500 --context 4096
    bcquant export mobile model-gptq --dry-run
    bcquant verify model-gptq model.bcq
    bcquant export mobile model-gptq --certificate model.bcq.certificate.json -o sealed.bcq
    openssl genpkey -algorithm ed25519 -out key.pem
    bcquant export mobile model-gptq --sign key.pem -o model.bcq
    """,
)
