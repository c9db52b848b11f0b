"""Processes of the tools, and what their results are read back as."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcquant.errors import ConfigError, ExportError
from bcquant.eval.sweep import process
from bcquant.eval.sweep.process import run_child, versions

CHILDREN = process.MAIN.parent
PYTHON = Path(sys.executable)


def child(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, CHILDREN / f"run_{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_children(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A folder of children that holds run_fake.py."""
    (folder / "child_main.py").write_text(process.MAIN.read_text())
    (folder / "run_fake.py").write_text(source)
    monkeypatch.setattr(process, "MAIN", folder / "child_main.py")


def test_a_child_answers_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_children(
        tmp_path, monkeypatch,
        "IMPORTS = ('json',)\n"
        "def quantize(job, say):\n"
        "    say(1, 2)\n    print('hello')\n    return {'got': job['x']}\n",
    )  # fmt: skip
    seen: list[tuple[int, int]] = []
    found = run_child(PYTHON, "fake", {"x": 3}, tmp_path, lambda *part: seen.append(part))
    assert found["got"] == 3 and found["seconds"] >= 0
    assert seen == [(1, 2)]
    assert "hello" in (tmp_path / "fake.log").read_text()
    if Path("/proc/self/status").exists():
        assert 1 < found["peak_mb"] < 10_000


def test_a_failed_child_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_children(
        tmp_path, monkeypatch,
        "IMPORTS = ()\ndef quantize(job, say):\n    raise SystemExit('no such grid')\n",
    )  # fmt: skip
    with pytest.raises(ExportError, match=r"status 1: no such grid; .*fake\.log"):
        run_child(PYTHON, "fake", {}, tmp_path, lambda done, total: None)


def test_versions_of_what_is_there_and_what_is_not() -> None:
    found = versions(PYTHON, ("numpy", "no-such-distribution"))
    assert found == {"numpy": np.__version__, "no-such-distribution": None}


def test_a_wrong_interpreter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="correct --python"):
        versions(tmp_path / "python", ("numpy",))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # ONNX Runtime's HQQ
@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "rtn", "bits": 4, "sym": True},
        {"algorithm": "rtn", "bits": 4, "sym": False},
        {"algorithm": "rtn", "bits": 8, "sym": False},
        {"algorithm": "hqq", "bits": 4},
        {"algorithm": "k_quant", "bits": 4},
    ],
    ids=str,
)
def test_onnxruntime_weights_are_those_that_its_kernel_multiplies_with(
    settings: dict[str, Any],
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import TensorProto, helper, numpy_helper

    reader = child("onnxruntime")
    weight_NK = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    node, arrays = reader._quantized(weight_NK, {**settings, "group_size": 32})
    # float16 scales and float zeros, as they are counted and read
    stored = [a if a.dtype == np.uint8 else a.astype(np.float16).astype(np.float32) for a in arrays]
    found_NK, bits = reader._dequantized(node, stored)
    graph = helper.make_graph(
        [node], "linear",
        [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [64, 64])],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [64, 24])],
        [numpy_helper.from_array(a, n) for n, a in zip(node.input[1:], stored, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (said_KN,) = session.run(None, {node.input[0]: np.eye(64, dtype=np.float32)})
    # one float32 product each
    np.testing.assert_allclose(found_NK, said_KN.T, rtol=1e-5, atol=1e-6)
    # within two steps of the grid: it is a quantization of this weight
    assert np.abs(found_NK - weight_NK).max() < 2 * np.ptp(weight_NK) / (2 ** settings["bits"] - 1)
    per_group = {"rtn": 16 + (0 if settings.get("sym") else settings["bits"]), "hqq": 32}
    wanted = settings["bits"] + per_group.get(settings["algorithm"], 16 + settings["bits"]) / 32
    assert bits / weight_NK.size == wanted


def test_jobs_are_plain_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_children(
        tmp_path, monkeypatch, "IMPORTS = ()\ndef quantize(job, say):\n    return {'job': job}\n"
    )
    settings = {"bits": 4, "foem": {"alpha": 0.25}}
    found = run_child(PYTHON, "fake", {"settings": settings}, tmp_path, lambda done, total: None)
    assert found["job"]["settings"] == settings
    assert json.loads((tmp_path / "fake.job.json").read_text())["settings"] == settings
