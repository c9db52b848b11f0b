"""Every exporter and damaged checkpoints, bad places, and ends that come too early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.spec.quant_format import QuantFormat

EXPORTERS = ("onnx", "gguf", "mobile")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint("llama", tmp_path_factory.mktemp("m") / "tiny", dtype="F16")
    return quantize_folder(folder, "v1", QuantFormat(4, 32))


def cut(size: float) -> Callable[[Path], None]:
    """Leave this share of the weight file."""

    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])

    return spoil


def poison_scales(folder: Path) -> None:
    """The first stored scale becomes NaN."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name.endswith(".scales"))
    begin = 8 + length + header[name]["data_offsets"][0]
    data[begin : begin + 2] = np.float16(np.nan).tobytes()
    (folder / WEIGHTS).write_bytes(data)


def claim(**changes: object) -> Callable[[Path], None]:
    """config.json says something else."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return spoil


SPOILS: dict[str, Callable[[Path], None]] = {
    "empty": cut(0.0),
    "half": cut(0.5),
    "almost_all": cut(0.999),
    "a_scale_is_nan": poison_scales,
    "no_config": lambda folder: (folder / "config.json").unlink(),
    "no_weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a_billion_layers": claim(num_hidden_layers=10**9),
    "another_width": claim(hidden_size=4096),
    "another_family": claim(architectures=["MambaForCausalLM"], model_type="mamba"),
    "tokenizer_is_no_json": lambda folder: (folder / "tokenizer.json").write_text("{"),
}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", SPOILS)
def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(
    name: str,
    exporter: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    SPOILS[name](model)
    place = tmp_path / "place"
    place.mkdir()
    assert main(["export", exporter, str(model), "-o", str(place / "out"), "--json"]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("bcquant: error: ") and "Traceback" not in err
    assert err.count("bcquant: error:") == 1
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_read_only_disk_is_one_line(
    exporter: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a read-only file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        assert main(["export", exporter, str(checkpoint), "-o", str(disk / "out"), "--json"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "read-only file system; write to a folder on a writable disk" in last
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_export_that_is_ended_while_writing_shows_no_output(
    number: signal.Signals, status: int, exporter: str, checkpoint: Path, tmp_path: Path
) -> None:
    """The writer stops after its first bytes, so the signal always comes in the middle."""
    place = tmp_path / "place"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from bcquant.cli import main\n"
        "from bcquant.io.atomic import AtomicFile\n"
        "write = AtomicFile.write\n"
        "def slow(self, data):\n"
        "    write(self, data)\n"
        "    if 'model' in self.path.name or self.path.name == 'out':\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "AtomicFile.write = slow\n"
        f"sys.exit(main({['export', exporter, str(checkpoint), '-o', str(place / 'out')]!r}))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while "writing" not in child.stdout.readline():
        assert child.poll() is None, child.communicate()[1]
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == status and "Traceback" not in err, err
    assert not (place / "out").exists()
    if number == signal.SIGINT:
        assert list(place.iterdir()) == []
    assert main(["export", exporter, str(checkpoint), "-o", str(place / "out"), "--json"]) == 0
    assert (place / "out").exists()
