"""csrc/tiers.txt against the sources and against what the built extension has."""

from __future__ import annotations

import platform
from pathlib import Path

from bcquant.kernels import native

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def listed() -> list[tuple[str, str]]:
    """(architecture, tier) of every line."""
    lines = (ROOT / "csrc/tiers.txt").read_text(encoding="utf-8").splitlines()
    words = [line.partition("#")[0].split() for line in lines]
    return [(found[0], found[1]) for found in words if found]


def test_every_tier_with_a_source_is_listed_and_the_other_way_round() -> None:
    sources = {path.stem.removeprefix("tier_") for path in (ROOT / "csrc/kernels").glob("tier_*")}
    assert sources == {tier for _, tier in listed()}


def test_this_build_has_the_tiers_of_this_machine() -> None:
    assert set(native.tiers()) == {t for arch, t in listed() if arch in ("any", MACHINE)}
