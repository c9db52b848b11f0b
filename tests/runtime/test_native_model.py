"""The native model against the torch decoder on the same numbers, every family and format."""

from __future__ import annotations

import _thread
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from factory import FAMILIES, make_tiny, make_tiny_gguf
from tiny_quantized import quantized_folder

from bcquant.errors import ConfigError, KernelError, ShapeError
from bcquant.models.architecture import EMBEDDING, HEAD, block_tensors
from bcquant.models.decoder import Decoder
from bcquant.models.rope import rope_table
from bcquant.models.source import ModelSource, open_model
from bcquant.runtime import native_model
from bcquant.runtime.native_model import NativeModel, NativeOptions, rope_tables
from bcquant.spec.quant_format import QuantFormat

F32Array = npt.NDArray[np.float32]

EXACT = NativeOptions(precision="exact")
# float32 on both sides, sums in another order over two layers; measured 2e-5 on logits of 20.
BOUND = 1e-4
# Heads of the factory's ALiBi models are 8 wide; the kernels need 16.
SHAPES: dict[str, dict[str, Any]] = {
    "baichuan13b": {"hidden_size": 96}, "baichuan2_13b": {"hidden_size": 96},
}  # fmt: skip
FORMATS = {
    "4-sym": ("v1", QuantFormat(4, 32)),
    "4-asym": ("v2", QuantFormat(4, 64, False)),  # K = 96: a shorter last group
    "8-sym": ("v1", QuantFormat(8, 32)),
    "8-row": ("compressed-tensors", QuantFormat(8, -1)),
    "3-asym": ("v2", QuantFormat(3, 32, False)),
    "2-asym": ("v2", QuantFormat(2, 32, False)),
    "2-sym": ("v1", QuantFormat(2, -1)),
}
W8A8 = QuantFormat(8, -1, True, "int8_token")


@dataclass(frozen=True)
class Run:
    """Logits of 40 tokens: a prompt, then one at a time."""

    ids: npt.NDArray[np.int64]
    logits_TV: F32Array


def tokens(vocab: int = 96, count: int = 40) -> npt.NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, vocab, count)


def native_run(model: NativeModel, prompt: int = 23, count: int = 40) -> Run:
    """All logits of the prompt at once, then of each further token."""
    ids = tokens(model.config.vocab_size, count)
    logits = np.empty((count, model.config.vocab_size), np.float32)
    model.reserve(count)
    model.forward(ids[:prompt], logits[:prompt])
    for at in range(prompt, count):
        logits[at] = model.last_logits(ids[at : at + 1])
    return Run(ids, logits)


def judge(source: ModelSource, ids: npt.NDArray[np.int64]) -> F32Array:
    """The torch decoder in float32; matrices of floats are rounded to float16, as natively."""
    decoder = Decoder.load(source)

    def rounded(name: str, values: torch.Tensor) -> torch.Tensor:
        is_float = values.ndim == 2 and source.stored_dtype(name) != "quantized"
        return values.half().float() if is_float else values

    decoder.embedding = rounded(EMBEDDING, decoder.embedding)
    tied = source.config.tie_embeddings
    decoder.head = decoder.embedding if tied else rounded(HEAD, decoder.head)
    for layer, block in enumerate(decoder.blocks):
        for short, _ in block_tensors(source.config):
            block[short] = rounded(f"model.layers.{layer}.{short}", block[short])
    logits: F32Array = decoder(torch.from_numpy(ids)[None])[0].numpy()
    return logits


def exact_difference(path: Path) -> float:
    with open_model(path) as source:
        run = native_run(NativeModel.load(source, EXACT))
        return float(np.abs(run.logits_TV - judge(source, run.ids)).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_families_give_the_logits_of_the_torch_decoder(family: str, tmp_path: Path) -> None:
    target, fmt = FORMATS["4-sym"]
    path = quantized_folder(tmp_path, target, fmt, family, **SHAPES.get(family, {}))
    assert exact_difference(path) < BOUND


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["qwen2", "baichuan"])  # grouped heads; one W_pack
def test_formats_give_the_logits_of_the_torch_decoder(
    name: str, family: str, tmp_path: Path
) -> None:
    assert exact_difference(quantized_folder(tmp_path, *FORMATS[name], family)) < BOUND


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_checkpoints_run_in_float16(dtype: str, tmp_path: Path) -> None:
    assert exact_difference(make_tiny("qwen3", tmp_path, dtype)) < BOUND


def test_gguf_checkpoints_run_in_float16(tmp_path: Path) -> None:
    assert exact_difference(make_tiny_gguf("llama", tmp_path / "m.gguf")) < BOUND


def test_w8a8_with_exact_activations_is_the_dequantized_model(tmp_path: Path) -> None:
    assert exact_difference(quantized_folder(tmp_path, "int-quantized", W8A8)) < BOUND


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("m")
    return quantized_folder(folder, "v1", QuantFormat(4, 32), "mistral", vocab_size=384)


def load(path: Path, **options: Any) -> NativeModel:
    with open_model(path) as source:
        return NativeModel.load(source, NativeOptions(**options))


def test_chunks_of_a_prompt_give_the_same_logits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = native_run(load(path, precision="exact"))
    monkeypatch.setattr(native_model, "CHUNK_TOKENS", 9)  # three chunks; the window is 7
    model = load(path, precision="exact")
    model.reserve(40)
    for last in (23, 33, 40):
        first = model.decoder.position
        logits = model.last_logits(whole.ids[first:last])
        # Another number of tokens at once may take another kernel; float32 sums differ in order.
        assert np.abs(logits - whole.logits_TV[last - 1]).max() < BOUND


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_thread_count_changes_no_bit(path: Path, precision: str) -> None:
    runs = [native_run(load(path, num_threads=n, precision=precision)) for n in (1, 2)]
    assert np.array_equal(runs[0].logits_TV, runs[1].logits_TV)


@pytest.mark.parametrize("target", ["v1", "int-quantized"])
def test_int8_activations_stay_near_and_keep_most_best_tokens(target: str, tmp_path: Path) -> None:
    fmt = W8A8 if target == "int-quantized" else QuantFormat(4, 32)
    model = load(quantized_folder(tmp_path, target, fmt, "llama3"))
    assert model.precision == ("int8_token" if target == "int-quantized" else "int8")
    with open_model(tmp_path) as source:
        run = native_run(model)
        wanted = judge(source, run.ids)
    # A step is 1/127 of the group's largest activation: an error of 0.3 % of a layer's output, and
    # twice 7 layers of a random model add up to 2 %.
    error = np.linalg.norm(run.logits_TV - wanted) / np.linalg.norm(wanted)
    assert 0 < error < 0.04
    assert np.mean(run.logits_TV.argmax(1) == wanted.argmax(1)) >= 0.9


def test_truncated_and_reset_caches_give_the_same_bits(path: Path) -> None:
    model = load(path)
    first = native_run(model)
    model.decoder.truncate(20)
    assert model.decoder.position == 20
    for at in range(20, 40):
        again = model.last_logits(first.ids[at : at + 1])
        if at >= 23:
            assert np.array_equal(again, first.logits_TV[at])
    assert np.array_equal(native_run(model).logits_TV, first.logits_TV)


def test_full_cache_is_refused_and_stays_usable(path: Path) -> None:
    model = load(path)
    model.reserve(20)
    model.last_logits(tokens(count=19))
    with pytest.raises(ShapeError, match="2 more tokens after 19 do not fit into a cache of 20"):
        model.last_logits(tokens(count=2))
    assert np.isfinite(model.last_logits(tokens(count=1))).all()


def test_foreign_id_is_refused_and_leaves_the_position(path: Path) -> None:
    model = load(path)
    model.reserve(20)
    with pytest.raises(KernelError):
        model.last_logits([3, 384])
    assert model.decoder.position == 0


def test_interrupted_prompt_leaves_the_model_as_it_was(path: Path) -> None:
    model, ids = load(path), tokens(384, 200)
    model.reserve(200)
    wanted = model.last_logits(ids).copy()
    begun = threading.Event()

    def interrupt() -> None:
        begun.wait()
        _thread.interrupt_main()

    other = threading.Thread(target=interrupt)
    # A shell's background job, as CI may be one, ignores the signal.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):  # the signal meets a call after a few
                model.reserve(200)
                begun.set()
                model.last_logits(ids)
    finally:
        signal.signal(signal.SIGINT, handler)
        other.join()
    model.reserve(200)
    assert np.array_equal(model.last_logits(ids), wanted)


def test_tied_head_and_embedding_share_one_blob(tmp_path: Path) -> None:
    tied = load(make_tiny("smollm2", tmp_path / "tied", "F16"))
    loose = load(make_tiny("smollm2", tmp_path / "loose", "F16", tie_word_embeddings=False))
    assert loose.decoder.nbytes - tied.decoder.nbytes == 64 + 96 * 64 * 2  # K = 48 is padded to 64


@pytest.mark.parametrize("family", ["smollm2", "llama"])
def test_head_of_8_bits_is_near_that_of_16(family: str, tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 32), family)
    lines: list[str] = []
    with open_model(path) as source:
        options = NativeOptions(precision="exact", head_bits=8)
        run = native_run(NativeModel.load(source, options, say=lines.append))
    wide = native_run(load(path, precision="exact"))
    error = np.linalg.norm(run.logits_TV - wide.logits_TV) / np.linalg.norm(wide.logits_TV)
    # A weight misses by 0.4 % of its group's largest at most. Measured 2 %: two random layers make
    # more of an error in the embedding.
    assert 0 < error < 0.05
    assert "embedding and head rounded to 8 bits" in lines[0]


def test_load_says_once_what_computes(path: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    for folder in (path, make_tiny("llama", tmp_path, "BF16")):
        with open_model(folder) as source:
            model = NativeModel.load(source, NativeOptions(2), say=lines.append)
    assert len(lines) == 2
    assert f"tier {model.tier}, 2 threads, precision int8, " in lines[0]
    assert "rounded" not in lines[0]
    # No layer has codes, so nothing is rounded to int8.
    assert "precision exact" in lines[1] and lines[1].endswith("BF16 matrices rounded to float16")


@pytest.mark.parametrize(
    ("target", "fmt", "family", "named"),
    [
        ("v1", QuantFormat(4, 16), "llama", r"q_proj has group size 16.* multiple of 32"),
        ("v1", QuantFormat(4, 32), "baichuan13b", r"head_dim is 8; .* multiple of 16"),
    ],
)
def test_unsupported_checkpoint_says_to_use_torch(
    target: str, fmt: QuantFormat, family: str, named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"{named}.*; use --engine torch"):
        load(quantized_folder(tmp_path, target, fmt, family))


def test_group_size_of_a_whole_row_needs_no_multiple(tmp_path: Path) -> None:
    path = quantized_folder(tmp_path, "v1", QuantFormat(4, 128), "smollm2")  # rows of 48 and 96
    assert exact_difference(path) < BOUND


def test_value_beyond_float16_names_its_tensor(tmp_path: Path) -> None:
    from bcquant.io.checkpoint import open_checkpoint
    from bcquant.io.writer import write_safetensors

    make_tiny("llama", tmp_path)
    with open_checkpoint(tmp_path) as reader:
        tensors = {name: np.array(reader.read(name)) for name in reader.tensors}
    tensors["model.layers.1.mlp.up_proj.weight"][5, 6] = -7e4
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight' holds 70000"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_threads": 0}, "threads is 0"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"head_bits": 4}, "head_bits is 4"),
    ],
)
def test_options_out_of_range_are_refused(path: Path, options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(path, **options)


def test_unknown_tier_is_never_another_one(path: Path) -> None:
    with pytest.raises(KernelError, match="z80"):
        load(path, tier="z80")


def test_little_memory_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_model, "available_memory", lambda: 1 << 20)
    with pytest.raises(ConfigError, match="GiB are available"):
        load(path)


@pytest.mark.parametrize("family", ["llama", "llama3", "llama_linear", "qwen3"])
def test_rope_tables_are_those_of_torch(family: str, tmp_path: Path) -> None:
    with open_model(make_tiny(family, tmp_path)) as source:
        ours = rope_tables(source.config, 4096)
        theirs = rope_table(source.config, torch.arange(4096)[None])
    half = source.config.head_dim // 2
    for mine, other in zip(ours, theirs, strict=True):
        # One last bit of a number below 1: torch's cosine is not always correctly rounded.
        assert np.abs(mine - other[0, :, :half].numpy()).max() <= 2**-23
