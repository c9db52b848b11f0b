"""A checkpoint with orthogonal rotations folded into its weights: other numbers, the same model.

Rotated activations have smaller extremes, which int8 activations and caches round better. Nothing
is left to do at run time: the output is an ordinary checkpoint.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bcquant.errors import ConfigError
from bcquant.io.checkpoint import RawTensor
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, canonical_tensors
from bcquant.models.rotation import random_rotation
from bcquant.models.source import Array, F32Array, ModelSource, Rows
from bcquant.quant.tensors import QuantizedTensor
from bcquant.spec.quant_format import QuantFormat
from bcquant.spec.recipe import ROTATIONS

_RESIDUAL_STREAM, _VALUE_HEADS = 0, 1  # streams of random numbers
_NORMS = {"self_attn": "input_layernorm.weight", "mlp": "post_attention_layernorm.weight"}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")  # modules that add to the residual stream


def rotate(source: ModelSource, rotation: str, seed: int = 0) -> ModelSource:
    """A source whose model computes the same with rotated weights; "none" gives it back.

    "heads" rotates the values of every kv head (rows of v_proj, columns of o_proj). "residual" does
    so too and rotates the residual stream: every RMSNorm's weight moves into the linears behind it
    and becomes 1; the final norm moves into lm_head, which therefore cannot stay tied to the
    embedding (vocab x hidden values more to store).

    Args:
        rotation: one of `recipe.ROTATIONS`.
        seed: of the random signs.
    Returns:
        a source that owns `source`; its tensors are made a request at a time.
    Raises:
        ConfigError: there is no such rotation, or the source is quantized.
    Source: Ashkboos et al. 2024, QuaRot, without its rotations at run time; Liu et al. 2024,
        SpinQuant, R1 and R2.
    """
    if rotation not in ROTATIONS:
        raise ConfigError(f"rotation is {rotation!r}; one of {', '.join(ROTATIONS)} is needed")
    if rotation == "none":
        return source
    if source.quant is not None:
        raise ConfigError(
            f"{source.path}: is quantized ({source.quant.method}); its integers cannot be rotated, "
            "give the float checkpoint that it was made from"
        )
    return RotatedSource(source, rotation == "residual", seed)


class RotatedSource(ModelSource):
    """See `rotate`. Attributes as of `ModelSource`, of the rotated model."""

    def __init__(self, source: ModelSource, rotates_residual: bool, seed: int) -> None:
        """Make the rotation of the residual stream; no weight is read."""
        self._source, self._seed = source, seed
        self.path, self.arch, self.quant = source.path, source.arch, None
        self.config, self.reader = source.config, source.reader
        self._residual_CC: F32Array | None = None
        if rotates_residual:
            self.config = replace(source.config, tie_embeddings=False, norm_head=False)
            self._residual_CC = self._rotation(self.config.hidden_size, _RESIDUAL_STREAM)
            self.reader = copy.copy(source.reader)
            self.reader.config = _untied(source.reader.config)
        self._shapes = dict(canonical_tensors(self.config))

    def shape(self, name: str) -> tuple[int, ...]:
        """See `ModelSource.shape`."""
        return self._source.shape(name) if name not in self._shapes else self._shapes[name]

    def stored_dtype(self, name: str) -> str:
        """See `ModelSource.stored_dtype`; "F32" where the tensor is made here."""
        return "F32" if self._is_changed(name) else self._source.stored_dtype(name)

    def weight(self, name: str, rows: Rows | None = None) -> F32Array:
        """See `ModelSource.weight`."""
        if not self._is_changed(name):
            return self._source.weight(name, rows)
        first, last = self._rows(name, rows)
        residual_CC = self._residual_CC
        if residual_CC is not None:
            if name == EMBEDDING:
                return np.asarray(self._source.weight(name, (first, last)) @ residual_CC)
            if name == HEAD:
                stored = HEAD if self._source.has(HEAD) else EMBEDDING
                head_VC = self._source.weight(stored, (first, last))
                return np.asarray((head_VC * self._source.weight(FINAL_NORM)) @ residual_CC)
            if _is_residual_norm(name):
                return np.ones(last - first, np.float32)
        return np.ascontiguousarray(self._linear(name)[first:last])

    def quantized(self, module: str) -> QuantizedTensor | None:
        """None: a float model is rotated. CheckpointError: there is no such module."""
        self.shape(f"{module}.weight")
        return None

    def format_of(self, module: str) -> QuantFormat | None:
        """None: a float model is rotated. CheckpointError: there is no such module."""
        self.shape(f"{module}.weight")
        return None

    def raw(self, name: str, rows: Rows | None = None) -> Array | RawTensor:
        """See `ModelSource.raw`; float32 where the tensor is made here."""
        return self.weight(name, rows) if self._is_changed(name) else self._source.raw(name, rows)

    def close(self) -> None:
        """Close the source below."""
        self._source.close()

    def _is_changed(self, name: str) -> bool:
        self.shape(name)
        module, _, suffix = name.rpartition(".")
        if module.endswith(".v_proj") or name.endswith(".o_proj.weight"):
            return True
        if self._residual_CC is None:
            return False
        if suffix == "bias":
            return module.endswith(_WRITERS)
        return not module.endswith((".q_norm", ".k_norm"))

    def _linear(self, name: str) -> F32Array:
        """A weight or bias of a block's module."""
        _, _, layer, group, module, suffix = name.split(".")
        values = self._source.weight(name)
        if module == "v_proj" or (module, suffix) == ("o_proj", "weight"):
            values = self._in_rotated_heads(values, int(layer), is_output=module == "o_proj")
        residual_CC = self._residual_CC
        if residual_CC is None or (module == "v_proj" and suffix == "bias"):
            return values
        if f"{group}.{module}" in _WRITERS:  # a bias is a row: b R = (R^T b)^T
            return np.asarray(residual_CC.T @ values)
        norm_C = self._source.weight(f"model.layers.{layer}.{_NORMS[group]}")
        return np.asarray((values * norm_C) @ residual_CC)

    def _in_rotated_heads(self, values: F32Array, layer: int, is_output: bool) -> F32Array:
        """v_proj's rows or bias, or o_proj's columns; query heads follow their kv head."""
        cfg = self.config
        rotated = np.empty_like(values)
        per_kv = cfg.num_heads // cfg.num_kv_heads
        for head in range(cfg.num_kv_heads):
            rotation_DD = self._rotation(cfg.head_dim, _VALUE_HEADS, layer, head)
            if not is_output:
                part = slice(head * cfg.head_dim, (head + 1) * cfg.head_dim)
                rotated[part] = rotation_DD @ values[part]
                continue
            for query in range(head * per_kv, (head + 1) * per_kv):
                part = slice(query * cfg.head_dim, (query + 1) * cfg.head_dim)
                rotated[:, part] = values[:, part] @ rotation_DD.T
        return rotated

    def _rotation(self, size: int, *stream: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng([self._seed, *stream])
        return random_rotation(size, rng).astype(np.float32)


def _is_residual_norm(name: str) -> bool:
    return name == FINAL_NORM or name.endswith(tuple(_NORMS.values()))


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    """config.json of a model whose head is its own and holds the final norm; {} stays {}."""
    if not config:
        return {}
    folded = {"norm_head": False} if "norm_head" in config else {}
    return {**config, **folded, "tie_word_embeddings": False}
