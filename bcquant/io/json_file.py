"""JSON objects of files that may be hostile: sizes, nesting and duplicate keys are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import shown
from bcquant.io.mapped_file import MappedFile

# The largest real one, the weight index of a 600-layer mixture, has about 20 MB.
MAX_JSON_BYTES = 100_000_000


class _DuplicateKey(ValueError):
    pass


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse a UTF-8 JSON object.

    Args:
        data: the whole text.
        where: names the source in errors, for example a file path.
    Raises:
        CheckpointError: not UTF-8, not JSON, nested too deeply, a duplicate key, not an object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        message = f"not UTF-8 at byte {error.start}; download it again"
        raise CheckpointError(f"{where}: {message}") from None
    except RecursionError:
        raise CheckpointError(f"{where}: JSON nested too deeply; not a model's file") from None
    except _DuplicateKey as error:
        raise CheckpointError(f"{where}: the key {error} appears twice; remove one") from None
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: JSON {type(value).__name__}; an object is needed")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds an object.

    Raises:
        CheckpointError: it is missing, too large, or `parse_json_object` refuses it.
    """
    with MappedFile(path) as file:
        if file.size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path}: {file.size} bytes of JSON; at most {MAX_JSON_BYTES} are read"
            )
        return parse_json_object(file.bytes_at(0, file.size), str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _DuplicateKey(shown(key))
        result[key] = value
    return result
