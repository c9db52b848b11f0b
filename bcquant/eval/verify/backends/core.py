"""bcquant's own decoder in float32: the side that every export is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bcquant.eval.verify.backend import BackendKind, F32Array
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime.sentencepiece_proto import CONTROL, UNKNOWN, USER_DEFINED, read_pieces
from bcquant.runtime.token_backends import SentencePieceBackend, TokenizersBackend
from bcquant.runtime.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import torch

    from bcquant.models.decoder import Linear

Block = dict[str, "torch.Tensor"]


class CoreBackend:
    """A checkpoint in float32; blocks stay in memory if they fit, else each call reads them again.

    Attributes:
        source: the checkpoint; it is closed with the backend.
        end_ids: tokens that end a text.
        rounds_activations: it is a W8A8 model, whose own meaning is rounded activations.
    """

    def __init__(self, source: ModelSource) -> None:
        from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD
        from bcquant.models.decoder import load_tensor
        from bcquant.runtime.memory import available_memory

        self.source = source
        self.config = source.config
        self.vocab_size = self.config.vocab_size
        self._tokenizer = open_tokenizer(source.path)
        self.end_ids = self._tokenizer.eos_ids
        num_params = sum(math.prod(source.shape(name)) for name in source.names())
        free = available_memory()
        # Half of what is free: the export's own weights and one window's logits need the rest.
        self._is_resident = free is None or 4 * num_params < free // 2
        self._resident: list[Block] = []
        self._embedding = load_tensor(source, EMBEDDING)
        self._norm = load_tensor(source, FINAL_NORM)
        self._head = self._embedding if self.config.tie_embeddings else load_tensor(source, HEAD)
        quant = source.quant
        self.rounds_activations = quant is not None and quant.format.activation == "int8_token"
        has_int8_head = source.has(HEAD) and source.stored_dtype(HEAD) == "quantized"
        self._rounds_head = self.rounds_activations and has_int8_head
        self._linear = _int8_linear() if self.rounds_activations else None

    def unrounded(self) -> CoreBackend:
        """The same open model with float activations; itself if it has them already."""
        if not self.rounds_activations:
            return self
        twin = copy.copy(self)
        twin._linear, twin._rounds_head = None, False
        return twin

    def first_block(self, ids: Sequence[int]) -> F32Array:
        """The first of `hidden`, alone."""
        return np.asarray(next(self._states(ids))[0].numpy())

    def encode(self, text: str) -> list[int]:
        """See `Backend.encode`."""
        return self._tokenizer.encode(text)

    def text_ids(self, text: str) -> list[int]:
        """Ids of a long text as data: no begin token, nothing in it is special."""
        return self._tokenizer.encode(text, add_special=False, parse_special=False)

    def pieces(self) -> list[str]:
        """Spellings that a text is searched for before all else: special, user-defined, added."""
        backend = self._tokenizer.backend
        if isinstance(backend, TokenizersBackend):
            added = backend.tokenizer.get_added_tokens_decoder()
            return [token.content for _, token in sorted(added.items())]
        assert isinstance(backend, SentencePieceBackend)
        whole = (CONTROL, UNKNOWN, USER_DEFINED)
        pieces = read_pieces(backend.proto, str(self.source.path))
        found = [piece.text for piece in pieces if piece.kind in whole]
        return found + [token.text for token in backend.added.values()]

    def logits(self, ids: Sequence[int]) -> F32Array:
        """See `Backend.logits`."""
        import torch.nn.functional as F

        from bcquant.calib.smoothing import fake_int8_token
        from bcquant.models.norm import rms_norm
        from bcquant.models.precision import fast_float32

        with fast_float32():
            for h in self._states(ids):
                last = h
            normed = rms_norm(last, self._norm, self.config.rms_norm_eps)
            seen = fake_int8_token(normed) if self._rounds_head else normed
            return np.asarray(F.linear(seen, self._head)[0].numpy())

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Backend.greedy`; the whole text is computed anew for every token."""
        found: list[int] = []
        while len(found) < num_tokens:
            found.append(int(self.logits([*ids, *found])[-1].argmax()))
        return found

    def hidden(self, ids: Sequence[int]) -> list[F32Array]:
        """See `Backend.hidden`."""
        return [np.asarray(h[0].numpy()) for h in self._states(ids)]

    def close(self) -> None:
        """Close the checkpoint."""
        self.source.close()

    def _states(self, ids: Sequence[int]) -> Iterator[torch.Tensor]:
        """The residual stream (1, T, hidden) after every block."""
        import torch
        import torch.nn.functional as F

        from bcquant.models.attention import make_context
        from bcquant.models.decoder import block_forward, plain_linear

        with torch.inference_mode():
            ids_BT = torch.tensor([list(ids)])
            context = make_context(self.config, torch.arange(len(ids)).unsqueeze(0), len(ids), None)
            h = F.embedding(ids_BT, self._embedding)
            for layer in range(self.config.num_layers):
                weights = self._block(layer)
                linear = self._linear or plain_linear
                h = block_forward(self.config, layer, weights, h, context, linear=linear)
                yield h

    def _block(self, layer: int) -> Block:
        from bcquant.models.decoder import load_block

        if layer < len(self._resident):
            return self._resident[layer]
        block = load_block(self.source, layer)
        if self._is_resident:
            self._resident.append(block)
        return block


def _int8_linear() -> Linear:
    """A Linear whose input is rounded to int8 per token, as W8A8 kernels do."""
    from bcquant.calib.smoothing import fake_int8_token
    from bcquant.models.decoder import plain_linear

    def linear(
        x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        return plain_linear(fake_int8_token(x), weight, bias, name)

    return linear


def _accepts(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" or (path / "config.json").is_file()


BACKEND = BackendKind(
    name="core",
    package="",
    rank=9,
    accepts=_accepts,
    open=lambda path, max_tokens: CoreBackend(open_model(path)),
)
