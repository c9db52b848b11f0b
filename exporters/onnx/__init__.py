"""`bcquant export onnx`: a folder with model.onnx, its data, the tokenizer and what they are."""

from __future__ import annotations

from pathlib import Path

from bcquant.models.source import ModelSource
from bcquant.spec.export_plan import Exporter, ExportJob

from .options import OnnxOptions, add_arguments, options_of


def default_out(source: Path) -> Path:
    """`<name>-onnx` in the current folder."""
    return Path(f"{source.stem if source.suffix == '.gguf' else source.name}-onnx")


def prepare(source: ModelSource, options: OnnxOptions) -> ExportJob:
    """The job of one open checkpoint."""
    from .job import OnnxJob

    return OnnxJob(source, options)


EXPORTER = Exporter(
    name="onnx",
    help="ONNX for ONNX Runtime, onnxruntime-genai, browsers and phones",
    add_arguments=add_arguments,
    options=options_of,
    default_out=default_out,
    prepare=prepare,
    examples="""
    bcquant export onnx model-gptq -o model-onnx
    bcquant export onnx model-gptq --target genai
    bcquant export onnx model-gptq --variant std --dry-run
    """,
)
