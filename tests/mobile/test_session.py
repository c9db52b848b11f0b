"""Models and sessions of the C API against the Python engine over the same kernels.

The tier, the threads and the order of sums are the same, so logits must be equal to the last bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mobile_api as api
import numpy as np
import numpy.typing as npt
import pytest
from factory import FAMILIES, make_tiny
from mobile_api import Runtime, options
from mobile_build import MOBILE, THREAD_SANITIZED, program, run
from tiny_quantized import quantized_folder

from bcquant.errors import KernelError
from bcquant.kernels import native
from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., Path]
F32Array = npt.NDArray[np.float32]

# Heads of the factory's ALiBi models are 8 wide; the kernels need 16.
SHAPES: dict[str, dict[str, Any]] = {
    "baichuan13b": {"hidden_size": 96}, "baichuan2_13b": {"hidden_size": 96},
}  # fmt: skip
FORMATS = {
    "4-sym": ("v1", QuantFormat(4, 32)),
    "4-asym": ("v2", QuantFormat(4, 64, False)),
    "8-row": ("compressed-tensors", QuantFormat(8, -1)),
    "3-asym": ("v2", QuantFormat(3, 32, False)),
    "2-sym": ("v1", QuantFormat(2, -1)),
    "w8a8": ("int-quantized", QuantFormat(8, -1, True, "int8_token")),
}
TOKENS, PROMPT = 40, 23


def token_ids(vocab: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(7).integers(0, vocab, TOKENS)


@dataclass(frozen=True)
class Case:
    """A package, its source folder and the logits of the Python engine after each step."""

    package: Path
    ids: npt.NDArray[np.int64]
    steps: list[F32Array]


def python_steps(folder: Path, precision: str, tier: str | None = None) -> Case:
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, precision, tier=tier))
    ids = token_ids(model.config.vocab_size)
    model.reserve(TOKENS)
    steps = [model.last_logits(ids[:PROMPT]).copy()]
    steps += [model.last_logits(ids[at : at + 1]).copy() for at in range(PROMPT, TOKENS)]
    return Case(Path(), ids, steps)


@contextmanager
def session_of(
    runtime: Runtime, path: Path, chosen: api.Options, context: int = TOKENS
) -> Iterator[api.Session]:
    """A session that ends with all that it stands on."""
    package = runtime.open(path)
    model = package.model(chosen)
    session = model.session(context)
    yield session
    session.destroy()
    model.destroy()
    package.close()


def runtime_steps(
    runtime: Runtime, path: Path, chosen: api.Options, ids: npt.NDArray[np.int64]
) -> list[F32Array]:
    with session_of(runtime, path, chosen) as session:
        steps = [session.append(ids[:PROMPT])]
        steps += [session.append(ids[at : at + 1]) for at in range(PROMPT, len(ids))]
        return steps


def assert_same(ours: list[F32Array], theirs: list[F32Array]) -> None:
    assert len(ours) == len(theirs)
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(a, b), f"step {step} differs by up to {np.abs(a - b).max()}"


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> Case:
    """A 4-bit llama, and the steps of the Python engine."""
    folder = tmp_path_factory.mktemp("llama4")
    quantized_folder(folder / "source", "v1", QuantFormat(4, 32))
    case = python_steps(folder / "source", "int8")
    return Case(export_mobile(folder / "source", folder / "m.bcq"), case.ids, case.steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_logits_of_the_python_engine(
    tmp_path: Path, runtime: Runtime, export_mobile: Export, family: str
) -> None:
    folder = make_tiny(family, tmp_path / "source", "F16", **SHAPES.get(family, {}))
    path = export_mobile(folder, tmp_path / "m.bcq")
    case = python_steps(folder, "exact")
    assert_same(runtime_steps(runtime, path, options(kv_type=api.KV_F32), case.ids), case.steps)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_logits_of_the_python_engine(
    tmp_path: Path, runtime: Runtime, export_mobile: Export, name: str
) -> None:
    folder = tmp_path / "source"
    quantized_folder(folder, *FORMATS[name], family="qwen2")
    path = export_mobile(folder, tmp_path / "m.bcq")
    case = python_steps(folder, "int8")
    assert_same(runtime_steps(runtime, path, options(), case.ids), case.steps)


def test_activations_can_be_exact_whatever_the_package_says(
    tmp_path: Path, runtime: Runtime, export_mobile: Export
) -> None:
    folder = tmp_path / "source"
    quantized_folder(folder, *FORMATS["4-asym"])
    case = python_steps(folder, "exact")
    chosen = options(activations=0, kv_type=api.KV_F32)
    path = export_mobile(folder, tmp_path / "m.bcq")
    assert_same(runtime_steps(runtime, path, chosen, case.ids), case.steps)


@pytest.mark.parametrize("tier", native.tiers())
def test_the_tier_can_be_chosen(runtime: Runtime, llama4: Case, tier: str) -> None:
    try:
        native.context(1, tier)
    except KernelError as error:  # the list is of the build, not of this CPU
        pytest.skip(str(error))
    with session_of(runtime, llama4.package, options(tier=tier)) as session:
        assert session.model.tier() == tier
        first = session.append(llama4.ids[:PROMPT])
    # Another order of float32 sums: measured up to 5e-5 on logits of 17. The bound leaves room for
    # an activation on the border of two int8 codes that falls the other way (1 / 127 of its block).
    assert np.abs(first - llama4.steps[0]).max() < 0.2


def test_an_unknown_tier_is_refused(runtime: Runtime, llama4: Case) -> None:
    package = runtime.open(llama4.package)
    with pytest.raises(api.RuntimeFailure, match="sse9") as caught:
        package.model(options(tier="sse9"))
    assert caught.value.status == api.UNKNOWN_TIER
    package.close()


@pytest.mark.parametrize("threads", [2, 3, 0])
def test_threads_do_not_change_a_bit(runtime: Runtime, llama4: Case, threads: int) -> None:
    steps = runtime_steps(runtime, llama4.package, options(threads), llama4.ids)
    assert_same(steps, llama4.steps)


@pytest.mark.parametrize("prefill", [1, 5, 16, 512])
def test_chunks_of_a_prompt_change_nothing_but_the_order_of_sums(
    runtime: Runtime, llama4: Case, prefill: int
) -> None:
    steps = runtime_steps(runtime, llama4.package, options(prefill_tokens=prefill), llama4.ids)
    for ours, theirs in zip(steps, llama4.steps, strict=True):
        # One token and many may take different loops of a tier; measured 0 with avx512vnni.
        assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize("kv_type", [api.KV_F32, api.KV_F16, api.KV_INT8])
def test_a_truncated_session_goes_on_as_if_nothing_had_been(
    runtime: Runtime, llama4: Case, kv_type: int
) -> None:
    ids = llama4.ids
    with session_of(runtime, llama4.package, options(kv_type=kv_type)) as session:
        session.append(ids[:9])
        expected = [session.append(ids[at : at + 1]) for at in range(9, 21)]
        for position in (9, 20, 0):
            session.append(ids[:7])
            session.truncate(position)
            assert session.position == position
            if position == 0:
                session.append(ids[:9])
            again = [session.append(ids[at : at + 1]) for at in range(session.position, 21)]
            assert_same(again, expected[len(expected) - len(again) :])


def test_a_cancelled_prompt_leaves_the_session_as_it_was(runtime: Runtime, llama4: Case) -> None:
    ids = llama4.ids
    with session_of(runtime, llama4.package, options(prefill_tokens=5)) as session:
        session.append(ids[:PROMPT])
        expected = session.append(ids[PROMPT : PROMPT + 1])
        session.truncate(PROMPT)
        session.cancel()
        with pytest.raises(api.RuntimeFailure) as caught:
            session.append(ids[PROMPT:])
        assert caught.value.status == api.CANCELLED
        assert session.position == PROMPT
        assert np.array_equal(session.append(ids[PROMPT : PROMPT + 1]), expected)


def test_a_long_prompt_is_cancelled_while_it_runs(runtime: Runtime, llama4: Case) -> None:
    # Tokens one by one: some milliseconds a run, so the cancel falls into the middle of one.
    ids = np.tile(llama4.ids, 6)
    with session_of(runtime, llama4.package, options(prefill_tokens=1), 250) as session:
        for delay in (0.0005, 0.001, 0.002, 0.004):
            timer = threading.Timer(delay, session.cancel)
            timer.start()
            try:
                session.append(ids)
            except api.RuntimeFailure as failure:
                assert failure.status == api.CANCELLED
                assert session.position == 0
            timer.join()
            session.truncate(0)
            with pytest.raises(api.RuntimeFailure):
                session.cancel()
                session.append(ids[:2])
        assert session.position == 0
        assert np.abs(session.append(llama4.ids[:PROMPT]) - llama4.steps[0]).max() < 1e-3


def test_two_sessions_of_a_model_run_on_two_threads(runtime: Runtime, llama4: Case) -> None:
    package = runtime.open(llama4.package)
    model = package.model(options(2))
    sessions = [model.session(TOKENS + i) for i in range(2)]
    found: list[list[F32Array]] = [[], []]

    def work(i: int) -> None:
        found[i].append(sessions[i].append(llama4.ids[:PROMPT]))
        for at in range(PROMPT, TOKENS):
            found[i].append(sessions[i].append(llama4.ids[at : at + 1]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(2):
        assert_same(found[i], llama4.steps)
        sessions[i].destroy()
    model.destroy()
    package.close()


@pytest.mark.parametrize("kv_type", [api.KV_F32, api.KV_F16, api.KV_INT8])
@pytest.mark.parametrize("context", [1, 17, 200])
@pytest.mark.parametrize("family", ["llama", "baichuan13b", "smollm2"])
def test_the_plan_is_what_is_allocated(
    tmp_path: Path, runtime: Runtime, export_mobile: Export, family: str, context: int, kv_type: int
) -> None:
    folder = make_tiny(family, tmp_path / "source", "F16", **SHAPES.get(family, {}))
    package = runtime.open(export_mobile(folder, tmp_path / "m.bcq"))
    chosen = options(kv_type=kv_type, prefill_tokens=3 if context == 17 else 0)
    plan = package.plan(chosen, context)
    before = runtime.memory_in_use()
    model = package.model(chosen)
    session = model.session(context)
    session.append([1])
    held = runtime.memory_in_use() - before
    assert held == plan.table_bytes + plan.scratch_bytes + plan.kv_bytes
    assert plan.total_bytes == held + plan.weight_bytes
    session.destroy()
    again = model.session(context)
    assert runtime.memory_in_use() - before == held
    again.destroy()
    model.destroy()
    assert runtime.memory_in_use() == before
    package.close()


def test_a_budget_is_kept(runtime: Runtime, llama4: Case) -> None:
    package = runtime.open(llama4.package)
    total = package.plan(options(), TOKENS).total_bytes
    exact = package.model(options(budget_bytes=total))
    session = exact.session(TOKENS)
    for make in (
        lambda: exact.session(1),
        lambda: package.plan(options(budget_bytes=total - 1), TOKENS),
        lambda: package.model(options(budget_bytes=1000)),
    ):
        with pytest.raises(api.RuntimeFailure, match="budget") as caught:
            make()
        assert caught.value.status == api.OUT_OF_MEMORY
    session.destroy()
    exact.session(TOKENS).destroy()
    exact.destroy()
    smaller = package.model(options(budget_bytes=total - 1))
    with pytest.raises(api.RuntimeFailure, match="budget"):
        smaller.session(TOKENS)
    smaller.destroy()
    package.close()


def test_wrong_arguments_are_refused_and_change_nothing(runtime: Runtime, llama4: Case) -> None:
    def refused(status: int, call: Callable[[], object]) -> None:
        with pytest.raises(api.RuntimeFailure) as caught:
            call()
        assert caught.value.status == status and len(caught.value.text) > 10

    with session_of(runtime, llama4.package, options()) as session:
        model, package = session.model, session.model.package
        session.append(llama4.ids[:5])
        refused(api.BAD_ARGUMENT, lambda: session.append([96]))
        refused(api.BAD_ARGUMENT, lambda: session.append([3, -1]))
        refused(api.BAD_ARGUMENT, lambda: session.append([]))
        refused(api.BAD_SHAPE, lambda: session.append([1] * (TOKENS - 4)))
        refused(api.BAD_ARGUMENT, lambda: session.truncate(6))
        refused(api.BAD_ARGUMENT, lambda: session.truncate(-1))
        assert session.position == 5
        refused(api.BAD_ARGUMENT, lambda: model.session(0))
        refused(api.BAD_SHAPE, lambda: model.session(257))
        refused(api.BAD_SHAPE, lambda: package.plan(options(), 1 << 40))
        refused(api.UNSUPPORTED, lambda: package.model(options(activations=2)))
        for wrong in (
            options(num_threads=257), options(num_threads=-1), options(activations=3),
            options(kv_type=3), options(kv_type=-1), options(prefill_tokens=513),
        ):  # fmt: skip
            refused(api.BAD_ARGUMENT, lambda chosen=wrong: package.model(chosen))
            refused(api.BAD_ARGUMENT, lambda chosen=wrong: package.plan(chosen, 8))


def test_null_pointers_are_refused(runtime: Runtime) -> None:
    lib = runtime.lib
    assert lib.bcq_package_open(None, 0, None) == api.BAD_ARGUMENT
    assert lib.bcq_model_create(None, None, None) == api.BAD_ARGUMENT
    assert lib.bcq_session_create(None, 1, None) == api.BAD_ARGUMENT
    assert lib.bcq_session_append(None, None, 1, None) == api.BAD_ARGUMENT
    assert lib.bcq_session_truncate(None, 0) == api.BAD_ARGUMENT
    assert lib.bcq_plan_model(None, None, 1, None) == api.BAD_ARGUMENT
    for name in ("package_close", "model_destroy", "session_destroy", "session_cancel"):
        getattr(lib, f"bcq_{name}")(None)


def test_sessions_of_several_threads_pass_the_thread_sanitizer(
    tmp_path: Path, llama4: Case
) -> None:
    made = program(MOBILE / "tests/session_threads.cpp", tmp_path, THREAD_SANITIZED)
    assert "all passed" in run([made, llama4.package])
