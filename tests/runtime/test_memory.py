from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bcquant.errors import ConfigError
from bcquant.runtime.memory import available_memory, plan_memory

GIB = 1 << 30


def test_float32_when_it_fits() -> None:
    assert plan_memory(1_000_000, 100_000, 0, 8 * GIB).dtype == torch.float32


def test_bfloat16_when_only_that_fits() -> None:
    assert plan_memory(GIB, 1 << 20, 0, 3 * GIB).dtype == torch.bfloat16


def test_cache_counts() -> None:
    assert plan_memory(GIB // 2, 1 << 20, GIB // 2, 3 * GIB).dtype == torch.bfloat16


def test_too_little_for_either_is_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"2\.3 GiB in bfloat16 \(4\.3 GiB in float32\) but 1\.0"):
        plan_memory(GIB, 1 << 20, 0, GIB)


def test_unknown_memory_takes_float32_and_says_so() -> None:
    plan = plan_memory(GIB, 1 << 20, 0, None)
    assert plan.dtype == torch.float32
    assert "unknown" in plan.describe()


def test_description_names_the_type_and_the_numbers() -> None:
    assert plan_memory(GIB, 1 << 20, 0, 8 * GIB).describe() == (
        "float32, 4.3 GiB needed, of 8.0 GiB available"
    )


def _system(root: Path, available_kib: int, group: dict[str, str]) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_kib} kB\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in group.items():
        (root / "sys/fs/cgroup" / name).write_text(text)
    return root


def test_available_memory_of_a_plain_machine(tmp_path: Path) -> None:
    assert available_memory(_system(tmp_path, 1000, {})) == 1_024_000


def test_container_limit_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    group = {
        "memory.max": "500000\n",
        "memory.current": "300000\n",
        "memory.stat": "anon 1\ninactive_file 100000\n",
    }
    assert available_memory(_system(tmp_path, 1000, group)) == 300_000


def test_unlimited_container_is_a_plain_machine(tmp_path: Path) -> None:
    group = {"memory.max": "max\n", "memory.current": "300000\n"}
    assert available_memory(_system(tmp_path, 1000, group)) == 1_024_000


def test_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
