from __future__ import annotations

import errno
import inspect
import logging
import os
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from bcquant.errors import CheckpointError, ConfigError
from bcquant.io.checkpoint import open_checkpoint
from bcquant.io.hub import is_hub_id, resolve, select_files
from bcquant.io.writer import write_safetensors

FILES = [
    ".gitattributes",
    "README.md",
    "config.json",
    "consolidated.safetensors",
    "model.safetensors",
    "onnx/model.safetensors",
    "pytorch_model.bin",
    "tokenizer.json",
    "tokenizer.model",
    "modeling_evil.py",
]


def hub_error(kind):
    """An error of the hub library without its HTTP response."""
    error = kind.__new__(kind)
    Exception.__init__(error, "\n404 Client Error.\nmore")
    return error


class FakeHub:
    """Stands for the network: lists files, makes a snapshot folder, or raises."""

    def __init__(self, monkeypatch, folder, names=FILES):
        self.folder, self.names = folder, names
        self.calls: list[tuple] = []
        self.list_error: Exception | None = None
        self.download_error: Exception | None = None
        self.cached: str | None = None
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(
            huggingface_hub, "try_to_load_from_cache", lambda *_args, **_options: self.cached
        )

    def model_info(self, repo, *, revision=None, timeout=None):
        self.calls.append(("list", repo, revision))
        assert timeout
        if self.list_error:
            raise self.list_error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repo, *, revision=None, allow_patterns=None):
        self.calls.append(("download", repo, revision, allow_patterns))
        if self.download_error:
            raise self.download_error
        return str(self.folder)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    folder = tmp_path / "snapshot"
    write_safetensors(folder / "model.safetensors", {"w": np.ones(2, np.float32)}, {})
    (folder / "config.json").write_text("{}")
    return FakeHub(monkeypatch, folder)


def test_the_fake_has_the_signatures_of_the_library():
    info = inspect.signature(huggingface_hub.HfApi.model_info).parameters
    assert {"revision", "timeout"} <= set(info)
    assert "rfilename" in inspect.signature(huggingface_hub.hf_api.RepoSibling).parameters
    download = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert {"revision", "allow_patterns"} <= set(download)
    assert "revision" in inspect.signature(huggingface_hub.try_to_load_from_cache).parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", True),
        ("org/name@main", True),
        ("org/name-1.5_x@refs/pr/1", True),
        ("name", False),
        ("./org/name", False),
        ("/org/name", False),
        ("../name", False),
        ("a/b/c", False),
        ("org/name@", False),
        ("org/model.gguf", False),
        ("org/model.safetensors", False),
        ("https://huggingface.co/org", False),
        ("org/na me", False),
        ("org/имя", False),
    ],
)
def test_is_hub_id(text, expected):
    assert is_hub_id(text) is expected


def test_open_checkpoint_downloads_and_opens(hub):
    with open_checkpoint("org/name@v2") as opened:
        np.testing.assert_array_equal(opened.read("w"), np.ones(2, np.float32))
    assert hub.calls[0] == ("list", "org/name", "v2")
    assert hub.calls[1][:3] == ("download", "org/name", "v2")


def test_only_safetensors_configuration_and_tokenizer_are_fetched(hub):
    resolve("org/name", "main")
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
    assert hub.calls[1][3] == wanted


def test_bin_is_fetched_with_its_index_when_there_is_no_safetensors():
    names = ["config.json", "pytorch_model-1.bin", "pytorch_model.bin.index.json", "training.bin"]
    assert select_files("o/n", names) == names[:3]


def test_one_gguf_is_fetched_and_several_are_refused():
    assert select_files("o/n", ["a.gguf", "README.md"]) == ["a.gguf"]
    with pytest.raises(CheckpointError, match="o/n: 2 GGUF files; download one"):
        select_files("o/n", ["a.gguf", "b.gguf"])


def test_a_repository_without_weights_is_refused():
    with pytest.raises(CheckpointError, match=r"o/n: no safetensors, pytorch_model.bin or GGUF"):
        select_files("o/n", ["README.md", "sub/model.safetensors"])


def test_glob_characters_in_names_are_taken_literally(hub):
    hub.names = ["model[1].safetensors", "config.json"]
    resolve("org/name")
    assert hub.calls[1][3] == ["config.json", "model[[]1].safetensors"]


def test_two_revisions_are_refused(hub):
    with pytest.raises(ConfigError, match="give one"):
        resolve("org/name@a", "b")
    assert hub.calls == []


@pytest.mark.parametrize("step", ["list_error", "download_error"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "access is gated; accept its terms .* 'hf auth login'"),
        (
            errors.RepositoryNotFoundError,
            "no such local path, and no such public model .* spelling",
        ),
        (errors.RevisionNotFoundError, "there is no such revision"),
        (errors.HfHubHTTPError, "the hub refused: 404 Client Error"),
    ],
)
def test_refusals_of_the_hub_are_explained(hub, step, kind, message):
    setattr(hub, step, hub_error(kind))
    hub.cached = str(hub.folder / "config.json")
    with pytest.raises(CheckpointError, match=f"org/name: {message}"):
        resolve("org/name")


def test_an_invalid_id_is_explained(hub):
    hub.list_error = errors.HFValidationError("Repo id must be...")
    with pytest.raises(CheckpointError, match="not a valid hub id: Repo id"):
        resolve("org/na--me")


OFFLINE = [errors.OfflineModeIsEnabled("offline mode"), ConnectionError("no route")]


@pytest.mark.parametrize("error", OFFLINE, ids=["offline-mode", "no-route"])
def test_without_connection_and_cache_the_reason_is_told(hub, error):
    hub.list_error = error
    with pytest.raises(CheckpointError, match=f"download failed .{error}.; check the connection"):
        resolve("org/name")


@pytest.mark.parametrize("error", OFFLINE, ids=["offline-mode", "no-route"])
def test_without_connection_the_cached_copy_is_used_and_said(hub, error, caplog):
    hub.list_error = error
    hub.cached = str(hub.folder / "config.json")
    with caplog.at_level(logging.WARNING):
        assert resolve("org/name") == hub.folder
    assert "the hub cannot be reached; using the cached copy" in caplog.text


def test_an_error_of_the_http_library_is_a_connection_failure(hub):
    transport = next(b for b in errors.HfHubHTTPError.__bases__ if b is not OSError)
    hub.list_error = hub_error(transport)
    with pytest.raises(CheckpointError, match="the download failed"):
        resolve("org/name")


def test_a_full_disk_during_the_download_is_reported(hub):
    hub.download_error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(CheckpointError, match=r"No space left on device.*disk"):
        resolve("org/name")
