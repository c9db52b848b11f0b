"""The C API through its binding: packages, sessions, tokenizers, and who owns what."""

from __future__ import annotations

import gc
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.errors import CheckpointError, KernelError
from bcquant.kernels import runtime_library
from bcquant.kernels import runtime_native as rt
from bcquant.models.source import open_model
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

EXACT = rt.RuntimeOptions(activations="exact", kv_type="f32")
TEXTS = (
    "",
    " ",
    "Hello, world",
    "  two  spaces ",
    "<s>a</s>",
    "你好，世界",
    "🎉",
    "bad \ud800 half",
)


@pytest.fixture(scope="module", params=["llama", "baichuan"])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantized checkpoint and its package; byte-level and SentencePiece tokenizers."""
    folder = tmp_path_factory.mktemp(request.param)
    source = make_checkpoint(request.param, folder / "source", dtype="F16")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    package = folder / "m.bcq"
    assert main(["export", "mobile", str(source), "-o", str(package)]) == 0
    return source, package


@pytest.fixture
def package(made: tuple[Path, Path]) -> Path:
    return made[1]


def damaged(path: Path, folder: Path) -> Path:
    """A copy whose last byte, of the origin, is another."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    copy = folder / "damaged.bcq"
    copy.write_bytes(data)
    return copy


def test_info_is_the_checkpoint_s(made: tuple[Path, Path]) -> None:
    source, path = made
    with open_model(source) as opened, rt.open_package(path) as package:
        cfg, info = opened.config, package.info
        for name in rt.ModelInfo._fields[:8]:
            assert getattr(info, name) == getattr(cfg, name)
        assert info.eps == np.float32(cfg.rms_norm_eps)
        assert (info.is_alibi, info.ties_head) == (cfg.position == "alibi", cfg.tie_embeddings)
        assert (info.activations, info.eos_ids) == ("int8", open_tokenizer(source).eos_ids)
        assert (info.bos_id, info.pad_id) == (1, 0)
        assert b'"exporter":"mobile"' in (package.section(69) or b"")
        assert package.section(68) is None


def test_logits_are_the_native_engine_s(made: tuple[Path, Path]) -> None:
    source, path = made
    ids = [3, 9, 27, 81, 5, 6]
    with open_model(source) as opened:
        model = NativeModel.load(opened, NativeOptions(precision="exact"))
    model.reserve(len(ids))
    wanted = model.last_logits(ids).copy()
    with rt.open_package(path) as package, package.model(EXACT) as loaded:
        assert loaded.tier == model.tier
        session = loaded.session(16)
        whole = session.append(ids)
        # The same kernels over the same blobs and tables: not a bit is different.
        np.testing.assert_array_equal(whole, wanted)
        session.truncate(4)
        assert session.position == 4
        again = session.append(ids[4:])
        # Another split into chunks may take another tile of a product.
        np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kv_type", ["f32", "f16", "int8"])
def test_score_is_the_likelihood_that_appends_tell(package: Path, kv_type: str) -> None:
    ids = [1, 5, 9, 300, 17, 44, 5]
    options = rt.RuntimeOptions(activations="exact", kv_type=kv_type)
    with rt.open_package(package).model(options) as model:
        nll, session = model.session(16).score(ids), model.session(16)
        wanted = 0.0
        for token_id, following in itertools.pairwise(ids):
            logits = session.append([token_id]).astype(np.float64)
            wanted += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[following]
        # Kernels of a whole chunk and of single steps may sum in other orders; the int8 cache
        # then rounds a few values to a neighbour.
        assert nll == pytest.approx(wanted, rel=1e-3 if kv_type == "int8" else 1e-5)
        with pytest.raises(KernelError, match="a score needs 2"):
            session.score([1])
        assert session.position == len(ids) - 1


def test_append_refuses_and_keeps_what_it_held(package: Path) -> None:
    with rt.open_package(package).model().session(4) as session:
        session.append([1, 2])
        for ids, about in (
            ([], "ids are null or none"),
            ([-1], "ids of 0"),
            ([2**32 + 1], "ids of 0"),
            ([384], "ids of 0 .. 383"),
            ([1, 2, 3], "do not fit into a context of 4"),
        ):
            with pytest.raises(KernelError, match=about):
                session.append(ids)
        session.cancel()
        with pytest.raises(KernelError, match="cancelled"):
            session.append([3])
        assert session.position == 2
        session.append([3])
        with pytest.raises(KernelError, match="3 tokens are held"):
            session.truncate(4)


def test_ids_are_those_of_the_checkpoint_s_tokenizer(made: tuple[Path, Path]) -> None:
    source, path = made
    ours = open_tokenizer(source)
    with rt.open_package(path) as package, package.tokenizer() as tokenizer:
        for text in TEXTS:
            for flags in ((True, True), (True, False), (False, True), (False, False)):
                assert tokenizer.encode(text, *flags) == ours.encode(text, *flags), (text, flags)
        ids = ours.encode("你好 🎉 x")
        for is_continuation in (True, False):
            mine = tokenizer.stream(is_continuation)
            other = ours.stream(is_continuation=is_continuation)
            for i in [*ids, 10**6, -1, ids[0]]:
                assert mine.push(i) == other.push(i)
            assert mine.flush() == other.flush()
        assert tokenizer.token_bytes(10**6) == b""


def test_a_long_text_of_spaces_has_room(package: Path) -> None:
    tokenizer = rt.open_package(package).tokenizer()
    ids = tokenizer.encode(" a" * 5000, add_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode().split() == ["a"] * 5000


def test_closing_a_package_closes_what_was_opened_from_it(package: Path) -> None:
    opened = rt.open_package(package)
    model, tokenizer = opened.model(), opened.tokenizer()
    session, stream = model.session(8), tokenizer.stream()
    session.append([1])
    opened.close()
    opened.close()
    calls: list[tuple[str, Callable[[], object]]] = [
        ("Package", lambda: opened.section(69)), ("Model", lambda: model.session(8)),
        ("Session", lambda: session.append([1])), ("Tokenizer", lambda: tokenizer.encode("a")),
        ("Stream", lambda: stream.push(1)),
    ]  # fmt: skip
    for name, call in calls:
        with pytest.raises(KernelError, match=f"this {name} was closed"):
            call()


def test_a_session_keeps_alive_what_it_needs(package: Path) -> None:
    session = rt.open_package(package).model().session(8)
    gc.collect()
    assert session.append([1, 2]).shape == (384,)


def test_damage_is_named(package: Path, tmp_path: Path) -> None:
    spoilt = damaged(package, tmp_path)
    with pytest.raises(CheckpointError, match="'origin' is damaged"):
        rt.open_package(spoilt)
    rt.open_package(spoilt, checks_digests=False).close()
    cut = tmp_path / "cut.bcq"
    cut.write_bytes(package.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cut\.bcq"):
        rt.open_package(cut, checks_digests=False)
    with pytest.raises(CheckpointError, match=r"nothing\.bcq cannot be opened"):
        rt.open_package(tmp_path / "nothing.bcq")


def test_plan_is_kept_and_its_budget_too(package: Path) -> None:
    opened = rt.open_package(package)
    plan = opened.plan(64)
    assert plan.total_bytes == sum(plan[:4]) and min(plan) > 0
    small = rt.RuntimeOptions(budget_bytes=plan.total_bytes - 1)
    with pytest.raises(KernelError, match="budget"):
        opened.plan(64, small)
    enough = rt.RuntimeOptions(budget_bytes=plan.total_bytes)
    model = opened.model(enough)
    first = model.session(64)
    with pytest.raises(KernelError, match="budget"):
        model.session(64)
    first.close()
    model.session(64).append([1])


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"activations": "int4"}, "activations is 'int4'; one of exact, int8"),
        ({"kv_type": "f64"}, "kv_type is 'f64'"),
        ({"num_threads": 257}, "num_threads is 257"),
        ({"tier": "none"}, "m.bcq: "),
        ({"activations": "int8_token"}, "choose other activations"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: dict[str, Any], about: str, package: Path
) -> None:
    with pytest.raises(KernelError, match=about):
        rt.open_package(package).model(rt.RuntimeOptions(**options))


def test_library_needs_no_cpp_run_time() -> None:
    spec = importlib.util.find_spec(runtime_library.MODULE)
    assert spec is not None and spec.origin is not None
    data = Path(spec.origin).read_bytes()
    assert b"libstdc++" not in data and b"__cxa_throw" not in data


def test_a_build_without_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_library, "MODULE", "bcquant.kernels._absent")
    runtime_library.library.cache_clear()
    try:
        with pytest.raises(KernelError, match=r"_absent: not built; install .* C\+\+17 compiler"):
            rt.open_package("m.bcq")
    finally:
        runtime_library.library.cache_clear()
