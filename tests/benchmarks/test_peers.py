"""The random GGUF of bench_decode.py, and that our side of it runs the codes that are in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the scripts are no part of the package

from bcquant.quant.grid import dequantize  # noqa: E402
from benchmarks import _rows  # noqa: E402
from benchmarks.peers import q4_gguf  # noqa: E402


@pytest.fixture(scope="module", params=["Q8_0", "Q6_K"])
def gguf_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "random.gguf"
    q4_gguf.write_random(
        path, hidden=256, inner=512, heads=4, layers=2, vocab=320, head_type=request.param
    )
    return path


def test_codes_are_those_of_the_file(gguf_file: Path) -> None:
    with q4_gguf.Q4Source(gguf_file) as source:
        for module in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"):
            name = f"model.layers.1.{module}"
            found = source.quantized(name)
            assert found is not None
            # The reader's own Q4_0, a different path through the gguf package; both are exact.
            assert np.array_equal(dequantize(found), source.weight(f"{name}.weight"))
        assert source.quantized("lm_head") is None


def test_larger_groups_keep_the_codes(gguf_file: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    with q4_gguf.Q4Source(gguf_file) as a, q4_gguf.Q4Source(gguf_file, 128) as b:
        one, four = a.quantized(name), b.quantized(name)
    assert one is not None and four is not None
    assert np.array_equal(one.codes_NK, four.codes_NK)
    assert np.array_equal(one.scales_NG[:, ::4], four.scales_NG)


def test_description_counts_what_a_token_reads(gguf_file: Path) -> None:
    num_bytes, text = q4_gguf.describe(gguf_file)
    linears = 2 * (4 * 256 * 256 + 3 * 256 * 512) * 18 // 32
    head = 320 * 256 * 34 // 32 if "Q8_0" in text else 320 * 210
    assert num_bytes == linears + head + 5 * 256 * 4  # and the norms, float32
    assert "token_embd.weight Q4_0" in text


def test_native_model_runs_the_file(gguf_file: Path) -> None:
    from benchmarks.peers.bcq_decoder import BcqDecoder

    decoder = BcqDecoder(gguf_file, 32, 1, 64)
    seconds = decoder.round(list(range(16)), [1, 2, 3])
    assert min(seconds) > 0
    assert len(decoder.choices([5, 6, 7])) == 3
    linears = 2 * (4 * 256 * 256 + 3 * 256 * 512) * 18 // 32
    assert decoder.bytes_per_token == linears + 320 * 256 * 33 // 32  # head: 8 bits, groups of 64


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is missing: it builds stream_read.cpp")
def test_kernel_script_writes_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_kernels.py"), "--quick"]
    command += ["--shapes", "64x64", "--tokens", "1", "32", "--threads", "1", "--repeat", "1"]
    command += ["--impls", "bcquant", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())
    assert {tuple(r)[: len(_rows.FIELDS)] for r in rows} == {_rows.FIELDS}
    ours = [r for r in rows if r["impl"] == "bcquant"]
    assert [(r["K"], r["N"], r["M"], r["group_size"]) for r in ours] == [
        (64, 64, 1, 32), (64, 64, 32, 32),
    ]  # fmt: skip
    assert "stream" in ours[0]["ratio_to"]
    assert "# Kernels" in path.with_suffix(".md").read_text()
