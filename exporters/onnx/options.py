"""Flags of `bcquant export onnx` as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bcquant.errors import ConfigError

VARIANTS = ("ort", "std")
TARGETS = ("cpu", "web", "mobile", "genai")
ACCURACY_LEVELS = (0, 1, 4)
EMBEDDING_BITS = (4, 8, 16)

# Browsers fetch in pieces of at most 512 MB; a store's asset pack holds 1.5 GB.
_SPLIT_MB = {"web": 512, "mobile": 1500}
# onnxruntime-web 1.30 without a GPU, SmolLM2: std decodes six times as fast as ort.
_VARIANTS = {"web": "std"}


@dataclass(frozen=True)
class OnnxOptions:
    """How the graph is written.

    Attributes:
        variant: "ort" (com.microsoft operators, fastest) or "std" (ai.onnx alone).
        target: what the files are laid out for.
        accuracy_level: of MatMulNBits: 0 and 1 compute in float, 4 rounds activations to int8 with
            a scale for each token and block.
        split_mb: largest data file in MB (10^6 bytes); None = one file.
        float16: activations, caches and float tensors in float16 instead of float32.
        embedding_bits: 16 keeps a float embedding and head as they are; 4 or 8 rounds them.
    """

    variant: str = "ort"
    target: str = "cpu"
    accuracy_level: int = 4
    split_mb: int | None = None
    float16: bool = False
    embedding_bits: int = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("onnx")
    group.add_argument(
        "--variant", choices=VARIANTS,
        help="ort (the default): ONNX Runtime's own operators; std: ai.onnx alone, the default of "
        "--target web, whose CPU expands ort's 4-bit matrices anew at every token",
    )  # fmt: skip
    group.add_argument(
        "--target", choices=TARGETS, default="cpu", help="what the files are for (%(default)s)"
    )
    group.add_argument(
        "--accuracy-level", type=int, choices=ACCURACY_LEVELS,
        help="of --variant ort: 4 (the default) rounds the inputs of quantized layers to int8, the "
        "fast way; 0 and 1 keep floats",
    )  # fmt: skip
    group.add_argument(
        "--split-mb", type=int, metavar="N",
        help="data files of at most N MB (10^6 bytes); web: 512, mobile: 1500, else one file",
    )  # fmt: skip
    group.add_argument(
        "--float16", action="store_true", help="activations and caches in float16, for GPUs"
    )
    group.add_argument(
        "--embedding-bits", type=int, choices=EMBEDDING_BITS, default=16,
        help="round a float embedding and head to 4 or 8 bits; needs --allow-lossy",
    )  # fmt: skip


def options_of(args: argparse.Namespace) -> OnnxOptions:
    """Parsed flags as a value; what the target implies is filled in.

    Raises:
        ConfigError: flags that do not go together, or a size below 1.
    """
    split_mb = args.split_mb
    if split_mb is None:
        split_mb = _SPLIT_MB.get(args.target)
    if split_mb is not None and split_mb < 1:
        raise ConfigError(f"--split-mb is {split_mb}; at least 1 is needed")
    variant = args.variant or _VARIANTS.get(args.target, "ort")
    if variant == "std" and args.embedding_bits != 16:
        raise ConfigError("--embedding-bits needs --variant ort; ai.onnx cannot gather 4-bit rows")
    if variant == "std" and args.target == "genai":
        raise ConfigError("--target genai needs --variant ort; it runs GroupQueryAttention only")
    level = args.accuracy_level
    if variant == "std" and level is not None:
        raise ConfigError(
            "--accuracy-level needs --variant ort; ai.onnx has none, ONNX Runtime takes it for "
            "such a file from the session option session.qdq_matmulnbits_accuracy_level"
        )
    return OnnxOptions(
        variant, args.target, 4 if level is None else level, split_mb, args.float16,
        args.embedding_bits,
    )  # fmt: skip
