"""What a wheel of this tree holds, read from the list and from what setuptools makes of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

import bcquant

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def distribution() -> Distribution:
    """What the build backend reads from this tree, without building."""
    return apply_configuration(Distribution({"src_root": str(ROOT)}), str(ROOT / "pyproject.toml"))


def test_every_package_of_the_tree_is_listed(pyproject: dict[str, Any]) -> None:
    found = set()
    for top, prefix in (("bcquant", ()), ("exporters", ("bcquant",))):
        folders = {path.parent for path in (ROOT / top).rglob("*.py")}
        found |= {".".join((*prefix, *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(pyproject["tool"]["setuptools"]["packages"]) == found


def test_every_package_has_an_init_file(pyproject: dict[str, Any]) -> None:
    for package in pyproject["tool"]["setuptools"]["packages"]:
        folder = package.replace("bcquant.exporters", "exporters").replace(".", "/")
        assert (ROOT / folder / "__init__.py").is_file(), package


def test_metadata_has_name_version_and_license(distribution: Distribution) -> None:
    metadata = distribution.metadata
    assert (metadata.name, metadata.version) == ("bcquant", bcquant.__version__)
    assert metadata.license_expression == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_metadata_lists_the_packages(distribution: Distribution, pyproject: dict[str, Any]) -> None:
    assert distribution.packages == pyproject["tool"]["setuptools"]["packages"]


def test_console_script_is_the_entry_function(pyproject: dict[str, Any]) -> None:
    module, _, name = pyproject["project"]["scripts"]["bcquant"].partition(":")
    assert module == "bcquant.cli"
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_every_base_dependency_has_its_reason(pyproject: dict[str, Any]) -> None:
    reasons = (ROOT / "docs/decisions/0001-dependencies.md").read_text(encoding="utf-8")
    extras = pyproject["project"]["optional-dependencies"]
    wanted = [
        *pyproject["project"]["dependencies"],
        *(r for group in extras.values() for r in group),
    ]
    for requirement in wanted:
        name = requirement.partition(">")[0].partition("=")[0]
        assert name in reasons, name


def test_constraints_hold_torch_and_every_dependency(pyproject: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("-", "_") for line in lines if "==" in line}
    assert "torch==2.13.0" in lines
    project = pyproject["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        assert requirement.partition(">")[0].lower().replace("-", "_") in pinned, requirement
