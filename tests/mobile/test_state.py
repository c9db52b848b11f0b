"""Sessions that are saved and restored, and prompts that share their start with what is held."""

from __future__ import annotations

import ctypes as c
import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mobile_api as api
import numpy as np
import pytest
from factory import make_tiny
from mobile_api import Runtime, options
from mobile_build import MOBILE, SANITIZED, program, run

IDS = [(i * 37 + 5) % 96 for i in range(40)]
CONTEXT = 48
HEADER_BYTES, DIGEST_BYTES = 64, 32
INDEX_DIGEST_AT = 64  # in a package's header, docs/formats/bcq_package_v1.md


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, export_mobile: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("state")
    return export_mobile(make_tiny("llama", folder / "source", "F16"), folder / "m.bcq")


@contextmanager
def model_of(runtime: Runtime, path: Path, chosen: api.Options) -> Iterator[api.Model]:
    opened = runtime.open(path)
    model = opened.model(chosen)
    yield model
    model.destroy()
    opened.close()


def save(session: api.Session, path: Path) -> None:
    lib = session.runtime.lib
    session.runtime.check(lib.bcq_session_save(session.handle, str(path).encode()))


def load(model: api.Model, path: Path, context: int = CONTEXT) -> api.Session:
    handle = c.c_void_p()
    lib = model.runtime.lib
    status = lib.bcq_session_load(
        model.handle, str(path).encode(), c.c_int64(context), c.byref(handle)
    )
    assert (status == api.OK) == (handle.value is not None)
    model.runtime.check(status)
    return api.Session(model, handle)


def held(session: api.Session) -> list[int]:
    session.runtime.lib.bcq_session_ids.restype = c.POINTER(c.c_int32)
    return list(session.runtime.lib.bcq_session_ids(session.handle)[: session.position])


def match(session: api.Session, ids: Sequence[int]) -> int:
    given = (c.c_int32 * max(1, len(ids)))(*ids)
    common = c.c_int64(-1)
    lib = session.runtime.lib
    session.runtime.check(
        lib.bcq_session_match(session.handle, given, c.c_int64(len(ids)), c.byref(common))
    )
    return common.value


@pytest.mark.parametrize("kv_type", [api.KV_F32, api.KV_F16, api.KV_INT8])
@pytest.mark.parametrize("num", [0, 1, 16, 23])
def test_a_restored_session_goes_on_bit_by_bit(
    tmp_path: Path, runtime: Runtime, package: Path, kv_type: int, num: int
) -> None:
    with model_of(runtime, package, options(kv_type=kv_type)) as model:
        session = model.session(CONTEXT)
        if num:
            session.append(IDS[:num])
        save(session, tmp_path / "state")
        steps = [session.append([token]) for token in IDS[num:]]
        for context in (CONTEXT, len(IDS)):  # the caches of another context lie otherwise
            restored = load(model, tmp_path / "state", context)
            assert held(restored) == IDS[:num]
            again = [restored.append([token]) for token in IDS[num:]]
            assert all(np.array_equal(a, b) for a, b in zip(steps, again, strict=True))
            assert held(restored) == IDS
            restored.destroy()
        session.destroy()


def test_a_file_has_the_layout_of_state_h(tmp_path: Path, runtime: Runtime, package: Path) -> None:
    with model_of(runtime, package, options(kv_type=api.KV_INT8)) as model:
        info = model.package.info()
        session = model.session(CONTEXT)
        session.append(IDS[:17])  # two blocks of 16 positions
        save(session, tmp_path / "state")
        session.destroy()
    position_bytes = 2 * info.num_layers * info.num_kv_heads * (info.head_dim + 4)
    expected = HEADER_BYTES + 17 * 4 + 32 * position_bytes + DIGEST_BYTES
    data = (tmp_path / "state").read_bytes()
    assert len(data) == expected
    digest_of_index = package.read_bytes()[INDEX_DIGEST_AT:][:DIGEST_BYTES]
    header = (b"BCQSTATE", 1, api.KV_INT8, 17, digest_of_index, 0)
    assert struct.unpack_from("<8sIIQ32sQ", data) == header
    assert list(struct.unpack_from("<17i", data, HEADER_BYTES)) == IDS[:17]
    assert data[-DIGEST_BYTES:] == hashlib.sha256(data[:-DIGEST_BYTES]).digest()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_a_file_has_behind_its_tokens_is_not_taken(
    tmp_path: Path, runtime: Runtime, package: Path
) -> None:
    path = tmp_path / "state"
    with model_of(runtime, package, options()) as model:
        session = model.session(CONTEXT)
        session.append(IDS[:17])
        save(session, path)
        session.destroy()
        whole = path.read_bytes()
        data = bytearray(whole)
        data[-DIGEST_BYTES - 2 : -DIGEST_BYTES] = b"\xff\x7f"  # NaN, a value of position 31
        data[-DIGEST_BYTES:] = hashlib.sha256(data[:-DIGEST_BYTES]).digest()
        path.write_bytes(data)
        restored = load(model, path)
        save(restored, path)
        assert path.read_bytes() == whole
        restored.destroy()


def assert_same_file(session: api.Session, fresh: api.Session, folder: Path) -> None:
    """Saved, both are the same bytes."""
    save(session, folder / "state")
    save(fresh, folder / "fresh")
    assert (folder / "state").read_bytes() == (folder / "fresh").read_bytes()


@pytest.mark.parametrize("kv_type", [api.KV_F32, api.KV_F16, api.KV_INT8])
def test_forgotten_tokens_leave_nothing_in_a_file(
    tmp_path: Path, runtime: Runtime, package: Path, kv_type: int
) -> None:
    """The kernels want zeros in the rest of a started block of 16 positions."""
    with model_of(runtime, package, options(kv_type=kv_type)) as model:
        session, fresh = model.session(CONTEXT), model.session(CONTEXT)
        runtime.check(runtime.lib.bcq_session_set_overflow(session.handle, 2, c.c_int64(0)))
        session.append([*IDS, *IDS[:8]])
        session.append([9])  # slides: the last 24 of 48 stay
        fresh.append([*IDS[24:], *IDS[:8], 9])
        assert_same_file(session, fresh, tmp_path)
        for one in (session, fresh):
            one.truncate(21)
        session.cancel()
        with pytest.raises(api.RuntimeFailure):
            session.append(IDS[:9])
        session.append(IDS[:2])
        fresh.append(IDS[:2])
        assert_same_file(session, fresh, tmp_path)
        for one in (session, fresh):
            one.destroy()


@pytest.mark.parametrize("kv_type", [api.KV_F32, api.KV_F16, api.KV_INT8])
def test_a_cancelled_slide_leaves_nothing_in_a_file(
    tmp_path: Path, runtime: Runtime, package: Path, kv_type: int
) -> None:
    with model_of(runtime, package, options(kv_type=kv_type)) as model:
        session, fresh = model.session(CONTEXT), model.session(CONTEXT)
        runtime.check(runtime.lib.bcq_session_set_overflow(session.handle, 2, c.c_int64(5)))
        for one in (session, fresh):
            one.append(IDS[:5])
        session.append(IDS[5:])
        session.cancel()
        with pytest.raises(api.RuntimeFailure):
            session.append(IDS[:20])
        assert_same_file(session, fresh, tmp_path)
        for one in (session, fresh):
            one.destroy()


def test_saving_over_a_file_replaces_it_whole(
    tmp_path: Path, runtime: Runtime, package: Path
) -> None:
    path = tmp_path / "state"
    with model_of(runtime, package, options()) as model:
        session = model.session(CONTEXT)
        session.append(IDS[:9])
        save(session, path)
        session.append(IDS[9:12])
        save(session, path)
        session.destroy()
        restored = load(model, path)
        assert held(restored) == IDS[:12]
        restored.destroy()


def test_a_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, runtime: Runtime, package: Path
) -> None:
    (tmp_path / "folder").mkdir()
    with model_of(runtime, package, options()) as model:
        session = model.session(CONTEXT)
        for path in (tmp_path / "none/state", tmp_path / "folder"):
            with pytest.raises(api.RuntimeFailure, match="cannot be written") as caught:
                save(session, path)
            assert caught.value.status == api.BAD_ARGUMENT
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        session.destroy()


def test_what_does_not_fit_the_model_is_refused(
    tmp_path: Path, runtime: Runtime, package: Path, export_mobile: Callable[..., Path]
) -> None:
    path = tmp_path / "state"
    other = export_mobile(make_tiny("llama", tmp_path / "s", "F16", seed=1), tmp_path / "o.bcq")
    with model_of(runtime, package, options()) as model:
        session = model.session(CONTEXT)
        session.append(IDS[:20])
        save(session, path)
        session.destroy()
        before = runtime.memory_in_use()
        for given, context, status, about in (
            (path, 19, api.BAD_SHAPE, "holds 20 tokens"),
            (path, 0, api.BAD_ARGUMENT, "context of 0"),
            (tmp_path / "none", CONTEXT, api.BAD_ARGUMENT, "cannot be opened"),
            (package, CONTEXT, api.BAD_BLOB, "no saved session"),
        ):
            with pytest.raises(api.RuntimeFailure, match=about) as caught:
                load(model, given, context)
            assert caught.value.status == status
        assert runtime.memory_in_use() == before
    for where, chosen, about in (
        (other, options(), "another package"),
        (package, options(kv_type=api.KV_INT8), "caches of type 1"),
    ):
        with model_of(runtime, where, chosen) as model:
            with pytest.raises(api.RuntimeFailure, match=about) as caught:
                load(model, path)
            assert caught.value.status == api.BAD_SHAPE


def test_damaged_files_are_refused_under_sanitizers(tmp_path: Path, package: Path) -> None:
    made = program(MOBILE / "tests/state_attacks.cpp", tmp_path, SANITIZED)
    assert "all passed" in run([made, package, tmp_path])


def test_a_prompt_that_starts_alike_needs_its_rest_alone(runtime: Runtime, package: Path) -> None:
    with model_of(runtime, package, options(prefill_tokens=1)) as model:
        session, fresh = model.session(CONTEXT), model.session(CONTEXT)
        session.append(IDS[:30])
        prompt = [*IDS[:21], 7, 8, 9]
        common = match(session, prompt)
        assert common == 21
        session.truncate(common)
        # Tokens one by one on both sides, so the sums have the same order.
        assert np.array_equal(session.append(prompt[common:]), fresh.append(prompt))
        assert held(session) == prompt
        for ids, expected in ((prompt, 24), (prompt[:5], 5), ([*prompt, 1], 24), ([], 0), ([0], 0)):
            assert match(session, ids) == expected
        session.destroy()
        fresh.destroy()


def test_null_pointers_are_refused(runtime: Runtime) -> None:
    lib = runtime.lib
    assert lib.bcq_session_save(None, b"x") == api.BAD_ARGUMENT
    assert lib.bcq_session_load(None, b"x", c.c_int64(1), None) == api.BAD_ARGUMENT
    assert lib.bcq_session_match(None, None, c.c_int64(0), None) == api.BAD_ARGUMENT
    lib.bcq_session_ids.restype = c.c_void_p
    assert lib.bcq_session_ids(None) is None
