"""How a user gets from one 4-bit GPTQ folder to something that runs: ours and the usual routes.

Each route is a list of commands, run as processes of their own, and what they leave behind.
llama.cpp's converter comes from the source archive of llama-cpp-python, which the benchmark
downloads; optimum-onnx runs in a venv of its own, because it wants an older transformers.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bcquant import __version__
from benchmarks._rows import package_version

PEERS = Path(__file__).parent
ROOT = PEERS.parents[1]
CACHE = Path.home() / ".cache" / "bcquant" / "bench"
OPTIMUM_PYTHON = ROOT / ".venv-optimum" / "bin" / "python"


@dataclass(frozen=True)
class Route:
    """One way to export.

    Attributes:
        impl: who does it, with `version` its versions.
        op: what it makes.
        commands: run in this order.
        out: what is left: a GGUF file or a folder with model.onnx.
    """

    impl: str
    version: str
    op: str
    commands: tuple[tuple[str, ...], ...]
    out: Path


def routes(source: Path, floats: Path, work: Path, optimum_python: Path) -> list[Route]:
    """Every route from `source`.

    Args:
        source: 4-bit GPTQ folder.
        floats: the same weights dequantized, as a float32 folder.
        work: where they write.
    """
    python = sys.executable
    bcquant = f"bcquant {__version__}"

    def ours(op: str, name: str, *flags: str) -> Route:
        kind = "gguf" if name.endswith(".gguf") else "onnx"
        command = (python, "-m", "bcquant", "export", kind, str(source), "-o", str(work / name))
        return Route("bcquant", bcquant, op, ((*command, *flags),), work / name)

    genai = package_version("onnxruntime-genai")
    return [
        ours("onnx ort", "ours-ort"),
        ours("onnx std", "ours-std", "--variant", "std"),
        ours("onnx genai", "ours-genai", "--target", "genai"),
        ours("gguf", "ours.gguf"),
        ours("onnx ort, embedding 8 bits", "ours-ort8", "--embedding-bits", "8", "--allow-lossy"),
        ours("gguf, embedding 8 bits", "ours8.gguf", "--embedding-bits", "8", "--allow-lossy"),
        _llama_cpp(source, work),
        Route(
            "onnxruntime-genai builder", genai, "onnx genai int4",
            ((python, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o",
              str(work / "builder"), "-p", "int4", "-e", "cpu", "-c", str(work / "cache")),),
            work / "builder",
        ),
        Route(
            "optimum-onnx", "optimum-onnx 0.1.0", "onnx float32 (of the dequantized model)",
            ((str(optimum_python), str(PEERS / "optimum_child.py"), str(floats),
              str(work / "optimum")),),
            work / "optimum",
        ),
    ]  # fmt: skip


def _llama_cpp(source: Path, work: Path) -> Route:
    convert = llama_converter()
    half, out = work / "llama-f16.gguf", work / "llama-q4_0.gguf"
    return Route(
        "llama.cpp convert + quantize", f"llama-cpp-python {version('llama-cpp-python')}", "gguf",
        (
            (sys.executable, str(convert), str(source), "--outtype", "f16", "--outfile", str(half)),
            (sys.executable, str(PEERS / "llama_quantize_child.py"), str(half), str(out)),
        ),
        out,
    )  # fmt: skip


def llama_converter() -> Path:
    """convert_hf_to_gguf.py of the installed llama-cpp-python's source archive."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    folder = CACHE / name / "vendor" / "llama.cpp"
    if not (folder / "convert_hf_to_gguf.py").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        flags = ["--no-binary", "llama-cpp-python", "-d", str(CACHE), wanted]
        subprocess.run([*pip, *flags], check=True)
        archive = CACHE / f"{name}.tar.gz"
        with tarfile.open(archive) as tar:
            kept = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
            inside = f"{name}/vendor/llama.cpp/"
            members = [m for m in tar if m.name.removeprefix(inside).startswith(kept)]
            tar.extractall(CACHE, members, filter="data")
        archive.unlink()
    return folder / "convert_hf_to_gguf.py"
