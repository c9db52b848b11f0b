"""What a quantized checkpoint is made of: one row per quantized module, and the run's settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MANIFEST_NAME = "bcquant_manifest.json"
MANIFEST_VERSION = 1

Figures = dict[str, float | None]  # None: not finite


@dataclass(frozen=True)
class ManifestRow:
    """One quantized module, sealed.

    Attributes:
        digest: SHA-256 over names, dtypes, shapes and bytes of the module's stored tensors.
        losses: candidate -> relative held-out output error, see `pipeline.guard.ModuleResult`.
        damp_percent: None where the module fell back to rounding to nearest.
    """

    module: str
    bits: int
    group_size: int
    symmetric: bool
    shape: tuple[int, int]
    digest: str
    candidate: str
    losses: dict[str, float]
    damp_percent: float | None
    note: str

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ManifestRow:
        """Inverse of `dataclasses.asdict` after JSON."""
        return ManifestRow(**{**values, "shape": tuple(values["shape"])})


@dataclass(frozen=True)
class Manifest:
    """Everything that determines the bytes of the output, and what was measured.

    Attributes:
        calibration: origin, digest and split of the calibration tokens.
        whole_model: perplexity of the float and the quantized model and KL, on report tokens;
            empty if there were none.
    """

    bcquant: str
    recipe: dict[str, Any]
    source: dict[str, Any]
    calibration: dict[str, Any]
    versions: dict[str, str]
    modules: tuple[ManifestRow, ...]
    whole_model: Figures

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the same run gives the same dict."""
        return {"manifest_version": MANIFEST_VERSION, **asdict(self)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Manifest:
        """Inverse of `as_dict` after JSON. TypeError or KeyError: it is something else."""
        fields = {k: v for k, v in values.items() if k != "manifest_version"}
        rows = tuple(ManifestRow.from_dict(row) for row in fields["modules"])
        return Manifest(**{**fields, "modules": rows})
