"""bcquant.calib.layer_stream against the resident decoder, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factory import make_tiny

from bcquant.calib import layer_stream
from bcquant.calib.dataset import CalibrationTokens
from bcquant.calib.layer_stream import (
    FLOAT,
    QUANT,
    LayerStream,
    StageData,
    Weights,
    gather_rows,
)
from bcquant.calib.measure import Head, PairMeter
from bcquant.calib.smoothing import InputProbe, fake_int8_token
from bcquant.errors import CheckpointError
from bcquant.models.architecture import STAGES
from bcquant.models.attention import make_context
from bcquant.models.decoder import Decoder, block_forward, plain_linear
from bcquant.models.source import ModelSource, open_model

SEQ_LEN, NUM = 9, 6
# The same arithmetic on other batch shapes: float32 sums in another order, hidden states of size 1.
ATOL = 2e-5


@pytest.fixture(scope="module", params=["qwen2", "llama", "baichuan13b", "mistral"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelSource]:
    folder = tmp_path_factory.mktemp(request.param)
    with open_model(make_tiny(request.param, folder)) as opened:
        yield opened


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    with open_model(make_tiny("llama", tmp_path_factory.mktemp("one"))) as opened:
        yield opened


def tokens(num_select: int = 2, num_report: int = 1) -> CalibrationTokens:
    ids = np.random.default_rng(0).integers(0, 96, (NUM, SEQ_LEN))
    train = NUM - num_select - num_report
    return CalibrationTokens(ids, train, num_select, num_report, "test", "")


class Recorder:
    """A stage solver that gives every weight back, changed by `change`, and keeps what it saw."""

    def __init__(self, change: float = 1.0, sealed: Weights | None = None) -> None:
        self.change, self.sealed = change, sealed or {}
        self.stages: dict[tuple[str, ...], StageData] = {}

    def input_exponents(
        self, modules: list[str], probe: Callable[[], InputProbe]
    ) -> torch.Tensor | None:
        return None

    def recall(self, modules: list[str]) -> Weights | None:
        if any(m not in self.sealed for m in modules):
            return None
        return {m: self.sealed[m] for m in modules}

    def solve(self, stage: StageData) -> Weights:
        self.stages[tuple(stage.weights)] = stage
        return {name: weight * self.change for name, weight in stage.weights.items()}


def run(
    source: ModelSource,
    folder: Path,
    solver: Recorder,
    dtype: torch.dtype = torch.float32,
    activation: str = "none",
) -> list[list[torch.Tensor]]:
    """Hidden states [layer][stream] at every layer's entrance and behind the last."""
    stream = LayerStream(source, tokens(), folder, dtype, activation)
    states = [[h.read(0, NUM) for h in stream.hidden]]
    for _ in range(source.config.num_layers):
        stream.run_layer(solver)
        stream.forget_previous()
        states.append([h.read(0, NUM) for h in stream.hidden])
    stream.close()
    return states


def resident(
    model: Decoder, linear: layer_stream.Callable[..., torch.Tensor] = plain_linear
) -> list[torch.Tensor]:
    """The same states from whole blocks."""
    h = F.embedding(torch.from_numpy(tokens().ids_ST), model.embedding)
    states = [h]
    context = make_context(model.config, torch.arange(SEQ_LEN).unsqueeze(0), SEQ_LEN)
    for layer, weights in enumerate(model.blocks):
        h = block_forward(model.config, layer, weights, h, context, None, linear)
        states.append(h)
    return states


def test_float_stream_equals_the_decoder_and_the_identity_keeps_both_equal(
    source: ModelSource, tmp_path: Path
) -> None:
    states = run(source, tmp_path, Recorder())
    for found, wanted in zip(states, resident(Decoder.load(source)), strict=True):
        torch.testing.assert_close(found[FLOAT], wanted, atol=ATOL, rtol=ATOL)
        assert torch.equal(found[FLOAT], found[QUANT])


def test_quantized_stream_uses_small_tensors_as_the_output_stores_them(
    source: ModelSource, tmp_path: Path
) -> None:
    states = run(source, tmp_path, Recorder(), torch.bfloat16)
    model = Decoder.load(source)
    for found, wanted in zip(states, resident(model), strict=True):
        torch.testing.assert_close(found[FLOAT], wanted, atol=ATOL, rtol=ATOL)
    model.embedding = model.embedding.bfloat16().float()
    for block in model.blocks:
        for name, values in block.items():
            if "_proj.weight" not in name:
                block[name] = values.bfloat16().float()
    for found, wanted in zip(states, resident(model), strict=True):
        torch.testing.assert_close(found[QUANT], wanted, atol=ATOL, rtol=ATOL)
    assert not torch.equal(states[-1][FLOAT], states[-1][QUANT])


def test_quantized_stream_goes_on_with_the_solvers_weights(
    source: ModelSource, tmp_path: Path
) -> None:
    states = run(source, tmp_path, Recorder(change=0.9))
    model = Decoder.load(source)
    for found, wanted in zip(states, resident(model), strict=True):
        torch.testing.assert_close(found[FLOAT], wanted, atol=ATOL, rtol=ATOL)
    for block in model.blocks:
        for name in list(block):
            if "_proj.weight" in name:
                block[name] = block[name] * 0.9
    for found, wanted in zip(states, resident(model), strict=True):
        torch.testing.assert_close(found[QUANT], wanted, atol=ATOL, rtol=ATOL)


def test_stage_data_is_the_input_of_its_modules_in_both_streams(
    source: ModelSource, tmp_path: Path
) -> None:
    solver = Recorder(change=0.9)
    run(source, tmp_path, solver)
    model = Decoder.load(source)
    seen: dict[str, torch.Tensor] = {}
    layer = -1

    def spy(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, name: str) -> torch.Tensor:
        nonlocal layer
        layer += name == "self_attn.q_proj"
        seen[f"model.layers.{layer}.{name}"] = x
        return plain_linear(x, weight, bias, name)

    resident(model, spy)
    floats, seen, layer = dict(seen), {}, -1
    for block in model.blocks:
        block.update({k: v * 0.9 for k, v in block.items() if "_proj.weight" in k})
    resident(model, spy)
    modules = [f"model.layers.{i}.{n}" for i in range(2) for stage in STAGES for n in stage]
    assert [m for stage in solver.stages for m in stage] == modules
    train, held = slice(0, NUM - 3), slice(NUM - 3, NUM - 1)
    for names, stage in solver.stages.items():
        for name in names:  # modules of a stage share their input
            x, x_hat = floats[name].double(), seen[name].double()
            scale = float(x.abs().max())
            torch.testing.assert_close(
                stage.held_float_MK.double(), x[held].flatten(0, 1), atol=ATOL * scale, rtol=0
            )
            torch.testing.assert_close(
                stage.held_quant_MK.double(), x_hat[held].flatten(0, 1), atol=ATOL * scale, rtol=0
            )
        x, x_hat = x[train].flatten(0, 1), x_hat[train].flatten(0, 1)
        cross = stage.moments.take_cross()
        bound = 4 * ATOL * float(x.abs().max()) ** 2
        if names[0] == modules[0]:
            assert cross is None  # nothing quantized lies before the first layer
        else:
            assert cross is not None
            wanted = (x - x_hat).T @ x_hat / len(x)
            torch.testing.assert_close(cross.double(), wanted, atol=bound, rtol=0)
        hessian = stage.moments.hessian().double()
        torch.testing.assert_close(hessian, x_hat.T @ x_hat / len(x), atol=bound, rtol=0)


@pytest.mark.parametrize("chunk_tokens", [1, 2 * SEQ_LEN, 4 * SEQ_LEN + 1])
def test_result_does_not_depend_on_the_chunk(
    llama: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int
) -> None:
    solver, other = Recorder(0.9), Recorder(0.9)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    usual = run(llama, tmp_path / "a", solver)
    monkeypatch.setattr(layer_stream, "CHUNK_TOKENS", chunk_tokens)
    chunked = run(llama, tmp_path / "b", other)
    for one, two in zip(usual, chunked, strict=True):
        for s in (FLOAT, QUANT):
            torch.testing.assert_close(one[s], two[s], atol=ATOL, rtol=ATOL)
    for names, stage in solver.stages.items():
        twin = other.stages[names]
        assert twin.moments.num_tokens == stage.moments.num_tokens == 3 * SEQ_LEN
        torch.testing.assert_close(twin.held_quant_MK, stage.held_quant_MK, atol=1e-4, rtol=1e-4)
        hessian = stage.moments.hessian()
        bound = 1e-4 * float(hessian.abs().max())
        torch.testing.assert_close(twin.moments.hessian(), hessian, atol=bound, rtol=0)


def plain_int8(x: torch.Tensor) -> torch.Tensor:
    """One token at a time, in float64."""
    rows = x.double().flatten(0, -2)
    out = torch.empty_like(rows)
    for i, row in enumerate(rows):
        scale = float(row.abs().max()) / 127
        out[i] = (row / scale).round().clamp(-128, 127) * scale
    return out.reshape(x.shape).float()


def test_fake_int8_equals_a_plain_loop() -> None:
    x = torch.randn(3, 5, 33, generator=torch.Generator().manual_seed(0))
    x[1] *= 1000
    # Values within 2^-24 of a rounding edge may fall the other way; this seed has none.
    torch.testing.assert_close(fake_int8_token(x), plain_int8(x), atol=0, rtol=1e-6)
    assert (fake_int8_token(torch.zeros(2, 4)) == 0).all()


def test_w8a8_rounds_only_the_quantized_streams_inputs(llama: ModelSource, tmp_path: Path) -> None:
    solver = Recorder()
    states = run(llama, tmp_path, solver, activation="int8_token")
    model = Decoder.load(llama)

    def int8(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, name: str) -> torch.Tensor:
        return plain_linear(plain_int8(x), weight, bias, name)

    for found, wanted in zip(states, resident(model), strict=True):
        torch.testing.assert_close(found[FLOAT], wanted, atol=ATOL, rtol=ATOL)
    for found, wanted in zip(states, resident(model, int8), strict=True):
        # A value at a rounding edge moves by one step, 1/127 of its token's largest; few do.
        error = (found[QUANT] - wanted).abs()
        assert float(error.mean()) < 1e-3 * float(wanted.abs().mean())
    stage = next(iter(solver.stages.values()))
    torch.testing.assert_close(
        stage.held_quant_MK, plain_int8(stage.held_float_MK), atol=1e-6, rtol=1e-5
    )


def test_sealed_modules_are_not_solved_again(llama: ModelSource, tmp_path: Path) -> None:
    names = [f"model.layers.0.{n}" for n in STAGES[0]]
    sealed = {n: torch.from_numpy(llama.weight(f"{n}.weight")) * 0.5 for n in names}
    solver = Recorder(sealed=sealed)
    states = run(llama, tmp_path, solver)
    assert tuple(names) not in solver.stages
    assert not torch.equal(states[-1][FLOAT], states[-1][QUANT])


def test_a_later_run_goes_on_at_the_layer_boundary(llama: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wanted = run(llama, tmp_path / "a", Recorder(0.9))[-1]
    first = LayerStream(llama, tokens(), tmp_path / "b", torch.float32)
    first.run_layer(Recorder(0.9))
    first.close()
    # What a kill in the middle of layer 1 leaves behind, of any length.
    for name in ("attended", "middle", "gated", "hidden2"):
        for stream in ("float", "quant"):
            (tmp_path / "b" / f"{name}.{stream}.f32").write_bytes(b"half a file")
    second = LayerStream(llama, tokens(), tmp_path / "b", torch.float32, next_layer=1)
    second.run_layer(Recorder(0.9))
    for s in (FLOAT, QUANT):
        assert torch.equal(second.hidden[s].read(0, NUM), wanted[s])
    second.close()


def test_a_kill_while_embedding_leaves_nothing_in_the_way(
    llama: ModelSource, tmp_path: Path
) -> None:
    (tmp_path / "hidden0.float.f32").write_bytes(b"half a file")
    run(llama, tmp_path, Recorder())


def test_hidden_states_that_are_gone_are_reported(llama: ModelSource, tmp_path: Path) -> None:
    stream = LayerStream(llama, tokens(), tmp_path, torch.float32, next_layer=1)
    with pytest.raises(CheckpointError, match="run with --restart"):
        stream.run_layer(Recorder())
    stream.close()


def test_hidden_states_of_earlier_layers_are_removed(llama: ModelSource, tmp_path: Path) -> None:
    run(llama, tmp_path, Recorder())
    # One set of files for what lives within a layer, however many layers there were.
    names = ("attended", "gated", "hidden2", "middle")
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [f"{name}.{stream}.f32" for name in names for stream in ("float", "quant")]


def test_nothing_held_out_gives_empty_held_inputs(llama: ModelSource, tmp_path: Path) -> None:
    solver = Recorder()
    stream = LayerStream(llama, tokens(0, 0), tmp_path, torch.float32)
    stream.run_layer(solver)
    stream.close()
    stage = next(iter(solver.stages.values()))
    assert stage.held_float_MK.shape == stage.held_quant_MK.shape == (0, 64)
    assert stage.moments.num_tokens == NUM * SEQ_LEN


def test_non_finite_held_tokens_are_left_out(llama: ModelSource, tmp_path: Path) -> None:
    stream = LayerStream(llama, tokens(), tmp_path, torch.float32)
    clean = torch.randn(NUM, SEQ_LEN, 8, generator=torch.Generator().manual_seed(0))
    dirty = clean.clone()
    dirty[4, 2, 3] = float("nan")  # of a held-out sequence
    dirty[0, 0, 0] = float("inf")  # of a train sequence

    def inputs(s: int, part: slice) -> torch.Tensor:
        return (dirty if s == QUANT else clean)[part]

    stage = stream.observe({"m": torch.zeros(2, 8)}, inputs)
    stream.close()
    wanted = torch.cat([clean[3], clean[4, :2], clean[4, 3:]])
    assert torch.equal(stage.held_float_MK, wanted)
    assert torch.equal(stage.held_quant_MK, wanted)
    assert (stage.moments.num_tokens, stage.moments.num_dropped) == (3 * SEQ_LEN - 1, 1)


@pytest.mark.parametrize("activation", ["none", "int8_token"])
@pytest.mark.parametrize("quantize_head", [False, True])
def test_figures_are_those_of_both_models(
    llama: ModelSource, tmp_path: Path, activation: str, quantize_head: bool
) -> None:
    stream = LayerStream(llama, tokens(), tmp_path, torch.float32, activation)
    for _ in range(2):
        stream.run_layer(Recorder(0.9))
    model = Decoder.load(llama)
    eps = llama.config.rms_norm_eps
    heads = [Head(model.norm, model.head, eps) for _ in range(2)]
    solver = Recorder(0.8)
    if quantize_head:
        heads[QUANT].head_VC = stream.solve_head(model.head, heads, solver)
        assert list(solver.stages) == [("lm_head",)]
        torch.testing.assert_close(heads[QUANT].head_VC, model.head * 0.8)
    meter, wanted = PairMeter(), PairMeter()
    stream.measure_sequence(NUM - 1, heads, meter)
    normed = [heads[s].normed(stream.hidden[s].read(NUM - 1, NUM)[0, :-1]) for s in (0, 1)]
    # The head's input is rounded exactly where the head is int8 as well.
    if activation == "int8_token" and quantize_head:
        normed[QUANT] = plain_int8(normed[QUANT])
    targets = torch.from_numpy(tokens().ids_ST[NUM - 1, 1:])
    wanted.add((heads[0].log_probs(normed[0]), heads[1].log_probs(normed[1])), targets)
    stream.close()
    assert meter.figures() == pytest.approx(wanted.figures(), rel=1e-3)
    assert meter.tokens == SEQ_LEN - 1


def test_gather_rows_reads_only_runs_that_are_wanted() -> None:
    table = np.arange(40, dtype=np.float32).reshape(20, 2)
    reads = []

    def read(low: int, high: int) -> np.ndarray:
        reads.append((low, high))
        return table[low:high]

    wanted = np.array([0, 3, 4, 18, 19])
    assert np.array_equal(gather_rows(read, wanted, 20, step=5), table[wanted])
    assert reads == [(0, 5), (15, 20)]


def test_a_token_outside_the_vocabulary_is_reported() -> None:
    with pytest.raises(CheckpointError, match="token id 20 but the model has 20 embeddings"):
        gather_rows(lambda low, high: np.zeros((high - low, 2)), np.array([1, 20]), 20)
