"""Solvers are found by file name."""

from __future__ import annotations

import pytest

from bcquant import registry
from bcquant.errors import ConfigError
from bcquant.solvers import find_solver


def test_names_are_the_public_files() -> None:
    assert registry.names("bcquant.solvers") == ["gptq", "rtn"]


@pytest.mark.parametrize("key", ["gptq", "rtn"])
def test_a_solver_knows_its_own_key(key: str) -> None:
    assert find_solver(key).key == key


def test_unknown_solver_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'gtpq' is unknown; did you mean 'gptq'\?"):
        find_solver("gtpq")


def test_unknown_solver_without_a_near_one_lists_all() -> None:
    with pytest.raises(ConfigError, match="known: gptq, rtn"):
        find_solver("zzzzzz")


@pytest.mark.parametrize("key", ["_search", "_curvature", "", "gptq.gptq", "../gptq"])
def test_private_files_and_paths_are_no_keys(key: str) -> None:
    with pytest.raises(ConfigError):
        find_solver(key)


def test_a_file_without_the_attribute_is_refused() -> None:
    with pytest.raises(ConfigError, match="defines no EXPORTER"):
        registry.load("bcquant.solvers", "gptq", "EXPORTER")
