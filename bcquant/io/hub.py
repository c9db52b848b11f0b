"""Checkpoints of the Hugging Face hub: which files to fetch, and what to say when that fails."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import NoReturn

from bcquant.errors import CheckpointError, ConfigError

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
_TIMEOUT_S = 15.0
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
# Everything small that says what the model is and how its text is cut.
_SMALL = (".json", ".model", ".txt", ".jinja")


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form "org/name" or "org/name@revision"; nothing is looked up."""
    return _ID.fullmatch(text) is not None and not text.lower().endswith(_WEIGHT_SUFFIXES)


def resolve(hub_id: str, revision: str | None = None) -> Path:
    """Download a model (or find it in the hub's cache) and return its folder.

    Weights: safetensors if the repository has them, else pytorch_model.bin, else a single GGUF.
    Without a connection a complete cached copy is used, and the log says so.

    Args:
        hub_id: "org/name", optionally with "@revision".
        revision: branch, tag or commit; not together with "@".
    Raises:
        ConfigError: two revisions.
        CheckpointError: not found, gated, no weights, or no connection and no cached copy.
    """
    repo, at, inline = hub_id.partition("@")
    if at and revision is not None:
        raise ConfigError(f"{hub_id}: a revision in the id and {revision!r} beside it; give one")
    revision = inline if at else revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The hub's HTTP library changed between versions; its base error is that of HfHubHTTPError.
    transport = [base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)]
    failures: tuple[type[Exception], ...] = (OSError, HFValidationError, *transport)
    try:
        # Unlike a file listing this is one request, without half a minute of retries when offline.
        info = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or ()]
    except failures as error:
        cached = _cached(repo, revision) if _is_connection(error) else None
        if cached is None:
            _explain(hub_id, error)
        _LOG.warning("%s: the hub cannot be reached; using the cached copy %s", hub_id, cached)
        return cached
    wanted = [_literal(name) for name in select_files(hub_id, names)]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except failures as error:
        _explain(hub_id, error)


def select_files(hub_id: str, names: list[str]) -> list[str]:
    """The files of a repository to download: one kind of weights, configuration, tokenizer.

    Raises:
        CheckpointError: no weights, or several GGUF files to choose from.
    """
    top = [name for name in names if "/" not in name and not name.startswith(".")]
    weights = [
        n for n in top if n.endswith(".safetensors") and not n.startswith("consolidated")
    ] or [n for n in top if n.endswith(".bin") and n.startswith(("pytorch_model", "gptq_model"))]
    if not weights:
        weights = [n for n in top if n.endswith(".gguf")]
        if len(weights) > 1:
            raise CheckpointError(
                f"{hub_id}: {len(weights)} GGUF files; download one of them and give its path"
            )
    if not weights:
        raise CheckpointError(
            f"{hub_id}: no safetensors, pytorch_model.bin or GGUF weights at its top level; "
            "choose another model"
        )
    return sorted({*weights, *(n for n in top if n.endswith(_SMALL))})


def _literal(name: str) -> str:
    """A glob pattern that matches `name` only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_connection(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return not isinstance(error, HfHubHTTPError | HFValidationError)


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _explain(hub_id: str, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    detail = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, errors.GatedRepoError):
        reason = "access is gated; accept its terms on the website, then run 'hf auth login'"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = "there is no such revision; check the name after '@' or --revision"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = (
            "no such local path, and no such public model on the hub; check the spelling, "
            "or run 'hf auth login' if it is private"
        )
    elif isinstance(error, errors.HfHubHTTPError):
        reason = f"the hub refused: {detail}"
    elif isinstance(error, errors.HFValidationError):
        reason = f"not a valid hub id: {detail}"
    else:
        reason = (
            f"no such local path, and the download failed ({detail}); check the connection and the "
            "disk, or give a local folder"
        )
    raise CheckpointError(f"{hub_id}: {reason}") from error
