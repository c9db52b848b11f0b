"""Which weight files of a model folder make up the checkpoint, and what its index says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import shown
from bcquant.io.json_file import read_json_object

MAX_SHARDS = 10_000


@dataclass(frozen=True)
class WeightFiles:
    """The files to open.

    Attributes:
        kind: "safetensors", "torch_bin" or "gguf".
        files: one or more, in the order of the index.
        weight_map: tensor name -> file name; None when there is one file and no index.
    """

    kind: str
    files: list[Path]
    weight_map: dict[str, str] | None


def find_weights(folder: Path) -> WeightFiles:
    """The checkpoint of a folder: safetensors before pytorch_model.bin before GGUF.

    The one well-known file is preferred to an index, as transformers does.

    Raises:
        CheckpointError: there are no weights, or it is unclear which, or the index is broken.
    """
    for kind, suffix, standard, prefixes in (
        ("safetensors", ".safetensors", "model.safetensors", ("",)),
        ("torch_bin", ".bin", "pytorch_model.bin", ("pytorch_model", "gptq_model")),
        ("gguf", ".gguf", "", ("",)),
    ):
        if (folder / standard).is_file():
            return WeightFiles(kind, [folder / standard], None)
        indexes = _listing(folder, f"{suffix}.index.json", prefixes)
        if len(indexes) == 1:
            return _from_index(kind, indexes[0], suffix)
        if len(indexes) > 1:
            raise CheckpointError(
                f"{folder}: {len(indexes)} weight indexes ({_some(indexes)}); keep one of them"
            )
        files = _listing(folder, suffix, prefixes)
        if len(files) == 1:
            return WeightFiles(kind, files, None)
        if len(files) > 1:
            advice = "give the path of one" if kind == "gguf" else "download the missing index"
            raise CheckpointError(
                f"{folder}: {len(files)} {suffix} files ({_some(files)}) and no index that says "
                f"how they belong together; {advice}"
            )
    raise CheckpointError(
        f"{folder}: no weights; model.safetensors, pytorch_model.bin, a weight index or a .gguf "
        "file is needed"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json of a folder, {} when there is none.

    Raises:
        CheckpointError: it is there but not a JSON object.
    """
    path = folder / "config.json"
    return read_json_object(path) if path.exists() else {}


def _from_index(kind: str, index_path: Path, suffix: str) -> WeightFiles:
    index = read_json_object(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is missing or empty; download it again")
    for tensor, file_name in weight_map.items():
        # A name with a folder in it could point anywhere on the disk.
        if (
            not isinstance(file_name, str)
            or not file_name.endswith(suffix)
            or set(file_name) & set("/\\\0:")
        ):
            raise CheckpointError(
                f"{index_path}: {shown(tensor)} is mapped to {shown(file_name)}; the plain name of "
                f"a {suffix} file beside the index is needed"
            )
    names = list(dict.fromkeys(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index_path}: {len(names)} shards; at most {MAX_SHARDS} are read")
    missing = [name for name in names if not (index_path.parent / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index_path}: {len(missing)} of {len(names)} shards are missing, "
            f"{shown(missing[0])} first; download them"
        )
    return WeightFiles(kind, [index_path.parent / name for name in names], weight_map)


def _listing(folder: Path, suffix: str, prefixes: tuple[str, ...]) -> list[Path]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    return [
        p
        for p in paths
        if p.name.endswith(suffix) and p.name.startswith(prefixes) and not p.name.startswith(".")
    ]


def _some(paths: list[Path]) -> str:
    names = [path.name for path in paths[:3]]
    return ", ".join(names) + (", ..." if len(paths) > 3 else "")
