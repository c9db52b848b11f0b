"""A model over the compiled kernels: packed once, then ids in and logits out, without torch.

The arithmetic is that of models/decoder.py in float32, with two differences: matrices that are
stored as floats are float16 here, and precision "int8" rounds the inputs of quantized layers to
int8. A step allocates nothing on the C++ side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bcquant.errors import ConfigError
from bcquant.kernels import native
from bcquant.models.alibi import alibi_slopes
from bcquant.models.architecture import EMBEDDING, FINAL_NORM, HEAD, quantizable_modules
from bcquant.models.rope_tables import rope_tables
from bcquant.models.source import ModelSource
from bcquant.runtime.memory import available_memory
from bcquant.runtime.native_weights import (
    is_w8a8,
    modules,
    pack_module,
    packed_bytes,
    read_row,
    refusal,
)
from bcquant.spec.model_config import ModelConfig
from bcquant.spec.quant_format import QuantFormat

F32Array = npt.NDArray[np.float32]
Ids = Sequence[int] | npt.NDArray[np.int64]

CHUNK_TOKENS = 512  # of a prompt that are computed at once
PRECISIONS = ("int8", "exact")
_GIB = 1 << 30
_OVERHEAD_BYTES = 128 << 20  # interpreter, tokenizer, one matrix while it is packed


class NativeOptions(NamedTuple):
    """How a native model computes.

    Attributes:
        num_threads: of the kernels, 1 .. 256.
        precision: "int8" rounds the inputs of quantized layers to int8, a scale for each token and
            group (W8A8: a scale for each token); "exact" keeps them float32.
        head_bits: 16 keeps a float embedding and head as float16; 8 rounds them to nearest on an
            int8 grid while loading.
        tier: of the kernels; None = BCQ_FORCE_TIER if set, else this CPU's best.
    """

    num_threads: int = 1
    precision: str = "int8"
    head_bits: int = 16
    tier: str | None = None


class NativeModel:
    """A packed model with its caches. Not for several threads at once.

    Attributes:
        config: shape and arithmetic.
        options: what it was loaded with.
        precision: a key of `kernels.native.PRECISIONS`: what the kernels do.
        decoder: the compiled part; `decoder.position` tokens are in the caches.
    """

    def __init__(
        self,
        config: ModelConfig,
        options: NativeOptions,
        precision: str,
        decoder: native.NativeDecoder,
    ) -> None:
        self.config, self.options = config, options
        self.precision, self.decoder = precision, decoder
        self._ids = np.zeros(CHUNK_TOKENS, np.int32)
        self._logits_1V = np.empty((1, decoder.vocab_size), np.float32)

    @classmethod
    def load(
        cls,
        source: ModelSource,
        options: NativeOptions | None = None,
        max_tokens: int = 2048,
        say: Callable[[str], None] = lambda line: None,
    ) -> NativeModel:
        """Pack every tensor of a checkpoint.

        Args:
            max_tokens: that the memory check leaves room for.
            say: told in one line what computes, and how.
        Raises:
            CheckpointError: a tensor cannot be read.
            ConfigError: an option is out of range, the kernels cannot run this checkpoint, a value
                does not fit into float16, or the model does not fit into the memory.
            KernelError: the tier is unknown or not of this CPU.
        """
        options = options or NativeOptions()
        _check_options(options)
        reason = refusal(source)
        if reason is not None:
            raise ConfigError(f"{source.path}: {reason}; use --engine torch")
        cfg = source.config
        _check_memory(source, options, min(max_tokens, cfg.max_positions))
        precision = _kernel_precision(source, options.precision)
        decoder = _decoder_without_blocks(source, options, precision)
        for layer in range(cfg.num_layers):
            _add_block(decoder, source, layer)
        model = cls(cfg, options, precision, decoder)
        say(model.describe() + _rounding_note(source, options))
        return model

    @property
    def tier(self) -> str:
        """The kernel tier that runs."""
        return self.decoder.context.tier

    def describe(self) -> str:
        """One line: tier, threads, precision and size."""
        threads = self.options.num_threads
        return (
            f"native engine: tier {self.tier}, {threads} thread{'s' if threads > 1 else ''}, "
            f"precision {self.precision}, {self.decoder.nbytes / 1e6:.0f} MB"
        )

    def reserve(self, num_tokens: int) -> None:
        """Forget all tokens and make room for `num_tokens`.

        Raises:
            KernelError: there is no memory for so many.
        """
        if num_tokens <= self.decoder.capacity:
            self.decoder.reset()
            return
        is_rope = self.config.position == "rope"
        tables = rope_tables(self.config, num_tokens) if is_rope else (None, None)
        self.decoder.reserve(num_tokens, *tables)

    def last_logits(self, ids: Ids) -> F32Array:
        """Append tokens, a chunk at a time; the logits (V,) after the last of them.

        The result is a buffer of this model's: the next call writes over it. Ctrl-C is seen after
        every layer of a long chunk.

        Raises:
            ShapeError: there is no room; `reserve` more.
        """
        for chunk, is_last in self._chunks(ids, CHUNK_TOKENS):
            self.decoder.forward(chunk, self._logits_1V if is_last else None)
        logits_V: F32Array = self._logits_1V[0]
        return logits_V

    def forward(self, ids: Ids, logits_RV: F32Array | None) -> None:
        """Append at most CHUNK_TOKENS tokens, and fill in the logits of the last R of them.

        Raises:
            ShapeError: too many tokens, or there is no room; `reserve` more.
        """
        if len(ids) <= CHUNK_TOKENS:
            self._ids[: len(ids)] = ids
            self.decoder.forward(self._ids[: len(ids)], logits_RV)
        else:
            self.decoder.forward(np.asarray(ids, np.int32), logits_RV)  # it says why not

    def _chunks(self, ids: Ids, size: int) -> Iterator[tuple[npt.NDArray[np.int32], bool]]:
        for first in range(0, len(ids), size):
            part = ids[first : first + size]
            self._ids[: len(part)] = part
            yield self._ids[: len(part)], first + size >= len(ids)


def _slopes(cfg: ModelConfig) -> F32Array | None:
    return np.array(alibi_slopes(cfg.num_heads), np.float32) if cfg.position == "alibi" else None


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _kv_type(options: NativeOptions) -> str:
    return "f32" if options.precision == "exact" else "f16"


def _kernel_precision(source: ModelSource, precision: str) -> str:
    if precision == "exact" or not any(source.format_of(m) for m in modules(source)):
        return "exact"  # float16 matrices are always computed exactly
    return "int8_token" if is_w8a8(source) else "int8"


def _end_format(source: ModelSource, options: NativeOptions) -> QuantFormat | None:
    """The grid for a float embedding and head; groups of 64 where they divide the row."""
    if options.head_bits == 16:
        return None
    whole_rows = is_w8a8(source) and options.precision != "exact"
    size = -1 if whole_rows else 64 if source.config.hidden_size % 64 == 0 else 32
    return QuantFormat(options.head_bits, size, symmetric=True)


def _rounding_note(source: ModelSource, options: NativeOptions) -> str:
    """What of the stored floats was rounded, in a clause; "" if nothing was."""
    floats = [m for m in modules(source) if source.format_of(m) is None]
    ends = {_module(EMBEDDING), _module(HEAD)}
    rounded = [m for m in floats if m in ends] if options.head_bits != 16 else []
    kept = [m for m in floats if m not in rounded]
    note = f"; embedding and head rounded to {options.head_bits} bits" if rounded else ""
    wide = {source.stored_dtype(f"{m}.weight") for m in kept} - {"F16"}
    return note + (f"; {', '.join(sorted(wide))} matrices rounded to float16" if wide else "")


def _decoder_without_blocks(
    source: ModelSource, options: NativeOptions, precision: str
) -> native.NativeDecoder:
    """Embedding, head and last norm; a tied head is the embedding's blob."""
    cfg = source.config
    context = native.context(options.num_threads, options.tier)
    fmt = _end_format(source, options)
    embedding = pack_module(source, _module(EMBEDDING), fmt)
    head = embedding if cfg.tie_embeddings else pack_module(source, _module(HEAD), fmt)
    return native.NativeDecoder(
        context, embedding, head, read_row(source, FINAL_NORM),
        num_layers=cfg.num_layers, intermediate=cfg.intermediate_size,
        num_heads=cfg.num_heads, num_kv_heads=cfg.num_kv_heads, head_dim=cfg.head_dim,
        eps=cfg.rms_norm_eps, precision=native.PRECISIONS[precision],
        kv_type=native.KV_TYPES[_kv_type(options)], max_tokens=CHUNK_TOKENS,
        alibi=_slopes(cfg),
    )  # fmt: skip


def _add_block(decoder: native.NativeDecoder, source: ModelSource, layer: int) -> None:
    names = quantizable_modules(source.config, layer)
    norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    attention_norm, mlp_norm, q_norm, k_norm = (
        read_row(source, f"model.layers.{layer}.{norm}.weight") for norm in norms
    )
    decoder.add_block(
        [pack_module(source, name) for name in names],
        [read_row(source, f"{name}.bias") for name in names],
        attention_norm, mlp_norm, q_norm, k_norm,
        window=source.config.windows[layer] or 0,
    )  # fmt: skip


def _check_options(options: NativeOptions) -> None:
    for name, value, is_valid, needed in (
        ("threads", options.num_threads, 1 <= options.num_threads <= 256, "1 .. 256"),
        ("precision", options.precision, options.precision in PRECISIONS, "exact or int8"),
        ("head_bits", options.head_bits, options.head_bits in (8, 16), "8 or 16"),
    ):
        if not is_valid:
            raise ConfigError(f"{name} is {value!r}; {needed} is needed")


def _check_memory(source: ModelSource, options: NativeOptions, num_tokens: int) -> None:
    available = available_memory()
    cfg = source.config
    value_bytes = 4 if _kv_type(options) == "f32" else 2
    cache = 2 * cfg.num_layers * cfg.kv_size * num_tokens * value_bytes
    needed = packed_bytes(source, options.head_bits) + cache + _OVERHEAD_BYTES
    if available is not None and needed > available:
        raise ConfigError(
            f"the packed model needs {needed / _GIB:.1f} GiB but {available / _GIB:.1f} GiB are "
            "available; close other programs, lower --max-new-tokens, or use a machine with more "
            "memory"
        )
