"""The engine of packages (`.bcq`): text through the same C++ library that runs them in apps.

Tokenizer, layers and caches are the library's. Draws are numpy_sampler's, so that a seed gives the
text that the native engine gives for the same logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from bcquant.io.json_file import parse_json_object
from bcquant.io.package_index import CHAT_TEMPLATE, ORIGIN, TOKENIZER
from bcquant.io.package_tokenizer import CONTROL, TokenizerTables, read_tokenizer
from bcquant.kernels import runtime_native
from bcquant.kernels.runtime_native import Model, ModelInfo, Package, RuntimeOptions, Stream
from bcquant.runtime.decode_stream import DecodeStream
from bcquant.runtime.generation import EngineFacts, TextEngine
from bcquant.runtime.numpy_sampler import sample
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.tokenizer import SpecialTokens, Tokenizer
from bcquant.spec.model_config import ModelConfig

SUFFIX = ".bcq"
_CHUNK_TOKENS = 128  # of a prompt between two looks at Ctrl-C
_STRIPS_PREFIX = 0b11  # bits of the section: dummy prefix, squeeze spaces


class PackageEngine(TextEngine):
    """An open package with its tokenizer; each generation has caches of its own.

    Attributes:
        config: sizes of the model, its context and special ids. Rotary frequencies are a table of
            the package, so `rope_theta` says nothing here.
    """

    def __init__(self, package: Package, model: Model, options: RuntimeOptions) -> None:
        self.config = _config(package)
        self.tokenizer = PackageTokenizer(package)
        self._package, self._model, self._options = package, model, options

    @classmethod
    def load(
        cls,
        path: str | Path,
        options: RuntimeOptions | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> PackageEngine:
        """Map a package; its digests are `bcquant verify`'s to compare.

        Args:
            path: the file, or the first of several.
            say: told in one line what computes, and how.
        Raises:
            CheckpointError: it is missing, damaged or no package, or has no tokenizer.
            KernelError: an option is out of range, or the tier is not of this CPU.
        """
        options = options or RuntimeOptions()
        package = runtime_native.open_package(path, checks_digests=False)
        engine = cls(package, package.model(options), options)
        tier, _, precision = engine.facts[1:]
        threads = options.num_threads
        mapped = package.plan(1, options).weight_bytes
        say(
            f"native engine: tier {tier}, {threads} thread{'s' if threads > 1 else ''}, "
            f"precision {precision}, {mapped / 1e6:.0f} MB mapped"
        )
        return engine

    @property
    def facts(self) -> EngineFacts:
        """What computes."""
        precision = self._options.activations or self._model.info.activations
        return EngineFacts("native", self._model.tier, self._options.num_threads, precision)

    def generate_ids(
        self, prompt_ids: Sequence[int], max_new_tokens: int, options: SamplingOptions
    ) -> Iterator[int]:
        """See `TextEngine.generate_ids`."""
        self.check(prompt_ids, max_new_tokens)
        history = list(prompt_ids)
        generator = np.random.Generator(np.random.PCG64(options.seed))
        with self._model.session(len(history) + max_new_tokens) as session:
            for first in range(0, len(history), _CHUNK_TOKENS):
                logits_V = session.append(history[first : first + _CHUNK_TOKENS])
            for step in range(max_new_tokens):
                if step > 0:
                    logits_V = session.append(history[-1:])
                history.append(sample(logits_V, history, options, generator))
                yield history[-1]

    def close(self) -> None:
        """Unmap the package; closing twice is fine."""
        self._package.close()


class PackageTokenizer(Tokenizer):
    """A package's tokenizer: ids and text come from the C++ library."""

    def __init__(self, package: Package) -> None:
        """Read it.

        Raises:
            CheckpointError: the package has none, or a damaged one.
        """
        info, native = package.info, package.tokenizer()
        tables = read_tokenizer(package.section(TOKENIZER) or b"", info.vocab_size, package.path)
        template = package.section(CHAT_TEMPLATE)
        special = SpecialTokens(
            bos_id=info.bos_id,
            eos_ids=info.eos_ids,
            pad_id=info.pad_id,
            prefix_ids=() if tables.begin_id is None else (tables.begin_id,),
            suffix_ids=() if tables.end_id is None else (tables.end_id,),
            chat_template=None if template is None else template.decode("utf-8", "replace"),
        )
        super().__init__(_PackageBackend(native, tables), special)
        self._native = native

    def stream(self, keep_special: bool = False, is_continuation: bool = True) -> DecodeStream:
        """See `Tokenizer.stream`; the library's own unless special tokens are to be shown."""
        if keep_special:
            return super().stream(keep_special, is_continuation)
        return _PackageStream(self._native.stream(is_continuation))


class _PackageBackend:
    """`token_backends.Backend` over the library."""

    def __init__(self, native: runtime_native.Tokenizer, tables: TokenizerTables) -> None:
        self._native, self._tables = native, tables

    @property
    def vocab_size(self) -> int:
        return self._tables.num_tokens

    @property
    def strips_prefix(self) -> bool:
        return bool(self._tables.bits & _STRIPS_PREFIX)

    def encode(self, text: str, parse_special: bool) -> list[int]:
        return self._native.encode(text, add_special=False, parse_special=parse_special)

    def token_bytes(self, token_id: int) -> bytes:
        return self._native.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._has(token_id) and int(self._tables.types[token_id]) == CONTROL

    def piece(self, token_id: int) -> str | None:
        return (
            self._tables.token(token_id).decode("utf-8", "replace") if self._has(token_id) else None
        )

    def find(self, piece: str) -> int | None:
        return self._ids.get(piece.encode())

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {self._tables.token(i): i for i in reversed(range(self._tables.num_tokens))}

    def _has(self, token_id: int) -> bool:
        return 0 <= token_id < self._tables.num_tokens


class _PackageStream(DecodeStream):
    """`DecodeStream` over the library."""

    def __init__(self, native: Stream) -> None:
        self._native = native

    def push(self, token_id: int) -> str:
        return self._native.push(token_id)

    def flush(self) -> str:
        return self._native.flush()


def _config(package: Package) -> ModelConfig:
    info: ModelInfo = package.info
    return ModelConfig(
        family=_family(package),
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        intermediate_size=info.intermediate_size,
        num_layers=info.num_layers,
        num_heads=info.num_heads,
        num_kv_heads=info.num_kv_heads,
        head_dim=info.head_dim,
        max_positions=info.max_positions,
        rms_norm_eps=info.eps,
        position="alibi" if info.is_alibi else "rope",
        tie_embeddings=info.ties_head,
        bos_id=info.bos_id,
        eos_ids=info.eos_ids,
        pad_id=info.pad_id,
    )


def _family(package: Package) -> str:
    """Of the checkpoint that the package was made from; "" where it does not say."""
    section = package.section(ORIGIN)
    if section is None:
        return ""
    source = parse_json_object(section, f"{package.path}: the origin").get("source")
    return str(source.get("family", "")) if isinstance(source, dict) else ""
