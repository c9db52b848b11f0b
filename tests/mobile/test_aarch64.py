"""The runtime on AArch64 under qemu: three cores with three kernel tiers, against x86-64.

Emulation proves answers, not speed; nothing here ran on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mobile_build import MOBILE, run
from mobile_cross import AARCH64, need
from platform_cases import (
    DRIVER,
    EXACT,
    HERE,
    INT8,
    KV_F32,
    KV_INT8,
    TEXT,
    Said,
    ask,
    build,
    cache_codes,
    spoken_package,
)

# The best tier of each core: max has all, A76 the dot product, A53 neither.
CPUS = {"max": "neon_i8mm", "cortex-a76": "neon_dotprod", "cortex-a53": "neon"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, export_mobile: Callable[..., Path]) -> Path:
    need("qemu-aarch64", AARCH64.compiler)
    return spoken_package(tmp_path_factory.mktemp("package"), export_mobile)


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("qemu-aarch64")
    return build(AARCH64, DRIVER, tmp_path_factory.mktemp("arm"), "-static")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Callable[[int, int], Said]:
    """(cache, activations) -> what this machine says."""
    folder = tmp_path_factory.mktemp("here")
    program = build(HERE, DRIVER, folder)
    return lambda kv, activations: ask([program], package, folder, kv, activations)


@pytest.mark.parametrize("activations", [EXACT, INT8])
@pytest.mark.parametrize("cpu", CPUS)
def test_an_arm_core_says_what_x86_does(
    tmp_path: Path,
    package: Path,
    arm: Path,
    here: Callable[[int, int], Said],
    cpu: str,
    activations: int,
) -> None:
    there = ask(["qemu-aarch64", "-cpu", cpu, arm], package, tmp_path, KV_F32, activations)
    wanted = here(KV_F32, activations)
    assert there.tier == CPUS[cpu]
    assert (there.ids, there.text) == (wanted.ids, wanted.text)
    assert there.text.decode() == TEXT
    assert there.drawn == wanted.drawn
    # Sums of at most 96 products in another order, through two layers: a few units in the last
    # place of float32 (1.2e-7) each. Codes of int8 activations are the same integers, or a step
    # of 1/127 would show.
    bound = 1e-5 * float(np.abs(wanted.logits).max())
    np.testing.assert_allclose(there.logits, wanted.logits, rtol=0, atol=bound)


@pytest.mark.parametrize("cpu", CPUS)
def test_int8_caches_hold_the_codes_of_x86(
    tmp_path: Path, package: Path, arm: Path, here: Callable[[int, int], Said], cpu: str
) -> None:
    there = ask(["qemu-aarch64", "-cpu", cpu, arm], package, tmp_path, KV_INT8, INT8)
    wanted = here(KV_INT8, INT8)
    assert there.drawn == wanted.drawn
    codes = cache_codes(wanted.state, num_layers=2, kv_heads=4, head_dim=16)
    assert len(np.unique(codes)) > 100  # otherwise equal codes would say little
    assert np.array_equal(cache_codes(there.state, 2, 4, 16), codes)


def test_bcq_run_prints_on_arm_what_it_prints_here(tmp_path: Path, package: Path) -> None:
    source = MOBILE / "tools/bcq_run.cpp"
    arm = build(AARCH64, source, tmp_path, "-static")
    here = build(HERE, source, tmp_path)
    words = [package, "--prompt", TEXT, "-n", "24", "--kv", "f32", "--threads", "2"]
    said = run(["qemu-aarch64", "-cpu", "cortex-a76", arm, *words], timeout=300)
    assert said == run([here, *words]) and len(said) > 1
