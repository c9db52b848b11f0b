"""A package in the C++ library that runs it in apps, on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import BackendKind, F32Array
from bcquant.eval.verify.read_package import is_package
from bcquant.kernels.runtime_native import RuntimeOptions, open_package
from bcquant.runtime.engine_choice import physical_cores


class BcqRuntimeBackend:
    """An open package with one session.

    Attributes:
        vocab_size: columns of the logits.
    """

    def __init__(self, path: Path, max_tokens: int, is_exact: bool = False) -> None:
        """Map a package and compare its digests.

        Args:
            is_exact: round no activations, and keep keys and values in float32, whatever the
                package asks for.
        Raises:
            CheckpointError: it is damaged, or has no tokenizer.
            KernelError: its kernels cannot run here.
        """
        self._package = open_package(path)
        info = self._package.info
        if info.max_positions < max_tokens:
            self.close()
            raise CheckpointError(
                f"{path}: it holds {info.max_positions} tokens and {max_tokens} are needed"
            )
        # Float16 caches are what apps use; their rounding is below that of int8 activations only.
        rounds = info.activations != "exact" and not is_exact
        options = RuntimeOptions(
            num_threads=physical_cores(),
            activations="exact" if is_exact else None,
            kv_type="f16" if rounds else "f32",
        )
        try:
            self._tokenizer = self._package.tokenizer()
            self._session = self._package.model(options).session(max_tokens)
        except BaseException:
            self.close()
            raise
        self.vocab_size = info.vocab_size

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        return self._tokenizer.encode(text)

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`; the library gives those of the last token, so one by one."""
        self._session.truncate(0)
        found = np.empty((len(ids), self.vocab_size), np.float32)
        for row_V, token in zip(found, ids, strict=True):
            row_V[:] = self._session.append([token])
        return found

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`; the prompt goes in at once."""
        found: list[int] = []
        self._session.truncate(0)
        step = list(ids)
        while len(found) < num_tokens:
            found.append(int(self._session.append(step).argmax()))
            step = found[-1:]
        return found

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`; the library does not show it."""
        return []

    def close(self) -> None:
        """Unmap the package."""
        self._package.close()


BACKEND = BackendKind(
    name="bcq_runtime",
    package="",
    rank=4,
    accepts=is_package,
    open=BcqRuntimeBackend,
    open_exact=lambda path, max_tokens: BcqRuntimeBackend(path, max_tokens, is_exact=True),
)
