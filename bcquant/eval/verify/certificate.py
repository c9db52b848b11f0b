"""The certificate: what was compared, how, with which figures, and the verdict.

Fields: docs/formats/certificate.md.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bcquant import __version__
from bcquant.errors import CheckpointError, ExportError
from bcquant.eval.verify.thresholds import Thresholds
from bcquant.io.atomic import atomic_write_json
from bcquant.io.digest import sha256_file

SCHEMA = "bcquant-certificate-1"
FILE_NAME = "certificate.json"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: "tokens", "weights", "settings", "logits", "graph", "rounding",
            "perplexity" or "greedy".
        passed: the verdict.
        figures: what was measured.
        limits: what was allowed, under the figures' names.
        problem: one sentence that names the text, tensor or step; None = passed.
    """

    name: str
    passed: bool
    figures: dict[str, Any]
    limits: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Certificate:
    """The outcome of one `bcquant verify`.

    Attributes:
        source, export: path, and every file's name, bytes and SHA-256.
        backend: what ran the export.
        thresholds: applied to the export as its program runs it.
        graph_thresholds: applied to its weights, and to its graph without rounded activations.
        settings: text, windows and prompts.
        versions: of the programs, by package.
        checks: in the order they were made.
        diverges: first tensor or layer that differs; None if nothing failed or nothing shows it.
        seconds: of the whole run.
    """

    source: dict[str, Any]
    export: dict[str, Any]
    backend: str
    thresholds: Thresholds
    graph_thresholds: Thresholds
    settings: dict[str, Any]
    versions: dict[str, str]
    checks: tuple[Check, ...]
    diverges: str | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Every check passed."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of the page."""
        return {
            "schema": SCHEMA,
            "verdict": "pass" if self.passed else "fail",
            "diverges": self.diverges,
            "source": self.source,
            "export": self.export,
            "backend": self.backend,
            "thresholds": asdict(self.thresholds),
            "graph_thresholds": asdict(self.graph_thresholds),
            "settings": self.settings,
            "versions": self.versions,
            "cpu": cpu_name(),
            "checks": [asdict(check) for check in self.checks],
            "seconds": round(self.seconds, 2),
        }


def certificate_path(export: Path) -> Path:
    """Where the certificate of an export lies: inside a folder, beside a file."""
    return export / FILE_NAME if export.is_dir() else export.with_name(f"{export.name}.{FILE_NAME}")


def write_certificate(export: Path, certificate: Certificate) -> Path:
    """Write it, replacing an older one at once; its path.

    Raises:
        ExportError: the place cannot be written; the message says how to do without.
    """
    path = certificate_path(export)
    try:
        atomic_write_json(path, certificate.as_dict())
    except ExportError as error:
        raise ExportError(f"{error}; --no-certificate verifies without writing one") from error
    return path


def describe_files(path: Path) -> dict[str, Any]:
    """Path, and name, bytes and SHA-256 of every file there but the certificate.

    Raises:
        CheckpointError: a file cannot be read.
    """
    own = certificate_path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = []
    for file in files:
        if file == own:
            continue
        name = file.name if file == path else file.relative_to(path).as_posix()
        try:
            size = file.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from error
        found.append({"name": name, "bytes": size, "sha256": sha256_file(file)})
    return {"path": str(path), "files": found}


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of Python, bcquant, NumPy, torch and the packages named, as they are installed."""
    wanted = [name for name in ("numpy", "torch", *packages) if name]
    found = {name: _version(name) for name in wanted}
    return {"python": platform.python_version(), "bcquant": __version__, **found}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # the module came under another name, as from onnxruntime-gpu


def cpu_name() -> str:
    """The CPU's model as Linux names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
