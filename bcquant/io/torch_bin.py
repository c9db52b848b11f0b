"""pytorch_model*.bin checkpoints: unpickled in torch's weights-only mode over a mapping.

Torch is imported inside the functions: nothing else in bcquant.io needs it.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.io.dtypes import STORAGE, Array, TensorInfo, shown
from bcquant.io.mapped_file import MappedFile
from bcquant.io.reader import CheckpointReader, Rows, find, row_range

if TYPE_CHECKING:
    import torch

# A state dict of 1000 tensors pickles to about 200 kB.
MAX_PICKLE_BYTES = 64 << 20
# Torch keeps touched pages resident, so a mapping is replaced after this much was read through it.
_REMAP_BYTES = 64 << 20
_DTYPES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
}
# Unpickling runs a program that the file chose, within torch's allow-list: these are what it and
# the zip reader raise for damaged or refused programs.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TorchBinCheckpoint(CheckpointReader):
    """A checkpoint of one or more zip-format torch files."""

    kind = "torch_bin"

    def __init__(
        self,
        path: Path,
        files: list[Path],
        weight_map: dict[str, str] | None,
        config: dict[str, Any],
    ) -> None:
        """Open and validate every shard; arguments as for `SafetensorsCheckpoint`.

        Raises:
            CheckpointError: a file is damaged, in the old non-zip format, refused by the
                weights-only unpickler, or the index names an absent tensor.
        """
        self.path, self.config, self.metadata, self.tensors = path, config, {}, {}
        shards = {file.name: _Shard(file) for file in files}
        if weight_map is None:
            weight_map = {n: f.name for f in files for n in shards[f.name].tensors}
        self._home: dict[str, _Shard] = {}
        for name, file_name in weight_map.items():
            shard = shards[file_name]
            if name not in shard.tensors:
                raise CheckpointError(
                    f"{path}: the index puts {shown(name)} in {file_name}, which does not hold it; "
                    "download both again"
                )
            self.tensors[name] = shard.tensors[name]
            self._home[name] = shard

    def read(self, name: str, rows: Rows | None = None) -> Array:
        """See `CheckpointReader.read`."""
        find(self.tensors, name, self.path)
        if name not in self._home:
            raise CheckpointError(f"{self.path}: read after the checkpoint was closed")
        return self._home[name].read(name, rows)

    def close(self) -> None:
        """Release every mapping."""
        for shard in self._home.values():
            shard.release()
        self._home = {}


class _Shard:
    """One file and its current mapping."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = _check_archive(path)
        self._state: dict[str, torch.Tensor] | None = None
        self._touched_bytes = 0
        state = _load_state(path, self._size)
        self.tensors = {name: _describe(name, tensor) for name, tensor in state.items()}

    def read(self, name: str, rows: Rows | None) -> Array:
        info = self.tensors[name]
        start, stop = row_range(info, rows)
        item = STORAGE[info.dtype]
        if not info.shape:
            return self._copy(name, None)
        out = np.empty((stop - start, *info.shape[1:]), item)
        row_bytes = max(1, out[:1].nbytes)
        step = max(1, _REMAP_BYTES // row_bytes)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            out[first - start : last - start] = self._copy(name, (first, last))
        return out

    def release(self) -> None:
        """Drop the mapping; the next read makes another."""
        self._state = None
        self._touched_bytes = 0

    def _copy(self, name: str, rows: Rows | None) -> Array:
        import torch

        tensor = self._mapped()[name]
        if rows is not None:
            tensor = tensor[rows[0] : rows[1]]
        bits = STORAGE[self.tensors[name].dtype]
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.int16)
        elif tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
            tensor = tensor.view(torch.uint8)
        values: Array = np.array(tensor.numpy(), copy=True, order="C").view(bits)
        self._touched_bytes += values.nbytes
        if self._touched_bytes >= _REMAP_BYTES:
            self.release()
        return values

    def _mapped(self) -> dict[str, torch.Tensor]:
        # Touching a mapped page beyond the end kills the process, so look at the file as it is now.
        try:
            size = os.stat(self._path).st_size
        except OSError as error:
            raise CheckpointError(
                f"{self._path}: cannot be read: {error.strerror or error}"
            ) from error
        if size != self._size:
            raise CheckpointError(
                f"{self._path}: the size went from {self._size} to {size} bytes while it was in "
                "use; do not change a checkpoint that is being read"
            )
        if self._state is None:
            state = _load_state(self._path, self._size)
            if {name: _describe(name, tensor) for name, tensor in state.items()} != self.tensors:
                raise CheckpointError(
                    f"{self._path}: it changed while it was in use; open it again"
                )
            self._state = state
        return self._state


def _check_archive(path: Path) -> int:
    """Check the zip container before torch sees it; return the file's size."""
    with MappedFile(path) as file:
        magic = file.bytes_at(0, min(4, file.size))
        size = file.size
    if magic != b"PK\x03\x04":
        code = f"import torch; p = {str(path)!r}; torch.save(torch.load(p, weights_only=True), p)"
        raise CheckpointError(
            f"{path}: not a torch zip file; if torch before 1.6 wrote it, convert it once: "
            f"{shlex.join(['python', '-c', code])}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _LOAD_ERRORS as error:
        message = f"damaged zip file ({_brief(error)}); download it again"
        raise CheckpointError(f"{path}: {message}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: compressed zip entries; torch does not write them: refused")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError(f"{path}: a TorchScript program, not weights; save a state dict")
    pickles = [e for e in entries if re.fullmatch(r"[^/]+/data\.pkl", e.filename)]
    if len(pickles) != 1 or pickles[0].file_size > min(MAX_PICKLE_BYTES, size):
        raise CheckpointError(
            f"{path}: {len(pickles)} data.pkl entries; exactly one of at most "
            f"{MAX_PICKLE_BYTES} bytes is needed: it is not a torch state dict"
        )
    return size


def _load_state(path: Path, size: int) -> dict[str, torch.Tensor]:
    """Map the file and unpickle its tensors, which stay views of the mapping."""
    import torch

    try:
        with warnings.catch_warnings():
            # An unusual pickle protocol is worth no warning: what torch cannot run, it refuses.
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{path}: {_refusal(error)}") from None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{path}: holds {'nothing' if state == {} else type(state).__name__}; a state dict "
            "(name -> tensor) is needed"
        )
    return {_checked_name(path, name): _checked(path, name, t, size) for name, t in state.items()}


def _checked_name(path: Path, name: Any) -> str:
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: a tensor is named {shown(name)}; a string is needed")
    return name


def _checked(path: Path, name: str, tensor: Any, size: int) -> torch.Tensor:
    import torch

    label = f"{path}: {shown(name)}"
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(
            f"{label} is a {type(tensor).__name__}, not a tensor; save the model's state dict alone"
        )
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise CheckpointError(f"{label} is a {tensor.layout} tensor on {tensor.device}; not dense")
    if str(tensor.dtype).removeprefix("torch.") not in _DTYPES:
        raise CheckpointError(f"{label} is {tensor.dtype}; known: {', '.join(_DTYPES)}")
    # Strides of zero can make a few bytes look like any number of them.
    if tensor.numel() * tensor.element_size() > size:
        raise CheckpointError(
            f"{label} has {tensor.numel()} elements, more than the {size} bytes of the file hold"
        )
    return tensor.detach().resolve_conj().resolve_neg()


def _describe(name: str, tensor: torch.Tensor) -> TensorInfo:
    dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return TensorInfo(name, dtype, tuple(tensor.shape))


def _refusal(error: BaseException) -> str:
    """What torch said, in a line: what a pickle wanted to call, or the damage."""
    wanted = re.search(
        r"unsupported (?:global: )?(?:global|class) (\S+)", str(error), re.IGNORECASE
    )
    if wanted:
        return (
            f"refused: unpickling it would run {shown(wanted.group(1))}, which is not weights; "
            "the file is malicious or damaged"
        )
    return f"cannot be unpickled as weights ({_brief(error)}); download it again"


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Torch begins with advice to load the file unsafely.
    lines = [line for line in lines if "weights_only" not in line] or lines
    return shown(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")[1:-1]
