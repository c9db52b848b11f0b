"""Keys and values of the tokens seen so far, in buffers allocated once."""

from __future__ import annotations

import torch

from bcquant.errors import ConfigError
from bcquant.spec.model_config import ModelConfig


class KvCache:
    """Preallocated keys and values of a batch.

    Every sequence of the batch uses the same slots; a slot that holds padding of one sequence is
    marked so and is never looked at. A forward pass calls `extend` once, then `append` per layer.

    Attributes:
        num_slots: slots in use, the same for all sequences.
        max_tokens: slots there are.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        batch: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate 2 * num_layers * batch * kv_size * max_tokens numbers of `dtype`.

        Raises:
            ConfigError: batch or max_tokens is below 1.
        """
        if batch < 1 or max_tokens < 1:
            raise ConfigError(
                f"KV cache: batch {batch} and max_tokens {max_tokens} must be at least 1"
            )
        shape = (cfg.num_layers, batch, cfg.num_kv_heads, max_tokens, cfg.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._is_token_BS = torch.zeros(batch, max_tokens, dtype=torch.bool, device=device)
        self._has_padding = False
        self.max_tokens = max_tokens
        self.num_slots = 0

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self._is_token_BS.shape[0])

    @property
    def lengths(self) -> list[int]:
        """Tokens held of each sequence, padding not counted."""
        return [int(n) for n in self._is_token_BS[:, : self.num_slots].sum(-1)]

    @property
    def num_bytes(self) -> int:
        """Size of the buffers."""
        return self._keys.nbytes + self._values.nbytes

    def extend(
        self, num_tokens: int, is_token_BT: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take the next `num_tokens` slots for every sequence.

        Args:
            is_token_BT: bool, False where a sequence has padding; None = all are tokens.
        Returns:
            positions of the new tokens in their sequences, shape (B or 1, T), and the mask of all
            slots in use (B, num_slots), or None where none of them holds padding.
        Raises:
            ConfigError: there is no room; the cache is unchanged.
        """
        first, last = self.num_slots, self.num_slots + num_tokens
        if last > self.max_tokens:
            raise ConfigError(
                f"KV cache: {num_tokens} more tokens after {first} need {last} slots but there are "
                f"{self.max_tokens}; make the cache larger or the text shorter"
            )
        if is_token_BT is None:
            self._is_token_BS[:, first:last] = True
        else:
            self._is_token_BS[:, first:last] = is_token_BT
            self._has_padding = self._has_padding or not bool(is_token_BT.all())
        self.num_slots = last
        if not self._has_padding:
            slots = torch.arange(first, last, device=self._is_token_BS.device)
            return slots.unsqueeze(0), None
        used_BS = self._is_token_BS[:, :last]
        positions_BS = (used_BS.long().cumsum(-1) - 1).clamp_min(0)
        return positions_BS[:, first:], used_BS

    def append(
        self, layer: int, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values into the slots taken by the last `extend`.

        Returns:
            views of all keys and values of the layer so far, shape (B, Hkv, num_slots, D).
        """
        first = self.num_slots - k_BHTD.shape[2]
        self._keys[layer, :, :, first : self.num_slots] = k_BHTD
        self._values[layer, :, :, first : self.num_slots] = v_BHTD
        return self._keys[layer, :, :, : self.num_slots], self._values[
            layer, :, :, : self.num_slots
        ]

    def reset(self) -> None:
        """Forget all tokens; the buffers stay."""
        self._is_token_BS.zero_()
        self._has_padding = False
        self.num_slots = 0
