"""Packages: every family passes in the C++ library, planted faults are refused and named."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from factory import FAMILIES

from bcquant.cli import main
from bcquant.errors import CheckpointError
from bcquant.eval.verify.backend import choose_backend
from bcquant.eval.verify.backends.core import CoreBackend
from bcquant.io.package import open_package
from bcquant.io.package_index import (
    CERTIFICATE,
    EMBEDDING,
    FINAL_NORM,
    HEADER_BYTES,
    POSITIONS,
    TOKENIZER,
    index_bytes,
)
from bcquant.models.source import open_model
from bcquant.spec.quant_format import QuantFormat

Fixture = Callable[..., Any]
Edit = Callable[[npt.NDArray[np.uint8]], None]
UP_KIND, UP = 21, "model.layers.1.mlp.up_proj.weight"
W8A8 = QuantFormat(8, -1, True, "int8_token")
EPS_AT, ENDS_AT = 32, 60  # in the model block


@pytest.fixture(scope="module")
def make_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A package of a source by the command line; the same arguments give the same one."""
    made: dict[str, Path] = {}

    def make(source: Path, *words: str) -> Path:
        key = repr((source, words))
        if key not in made:
            out = tmp_path_factory.mktemp("package") / "m.bcq"
            assert main(["export", "mobile", str(source), "-o", str(out), *words]) == 0
            made[key] = out
        return made[key]

    return make


def check(certificate: Any, name: str) -> Any:
    return next(check for check in certificate.checks if check.name == name)


def failed(certificate: Any) -> dict[str, str]:
    return {check.name: check.problem for check in certificate.checks if not check.passed}


def edit_section(
    path: Path, kind: int, layer: int | None, edit: Edit, is_signed: bool = True
) -> None:
    """Change a section's bytes; a signed change also has right digests, as an attacker's would."""
    with open_package(path) as package:
        section = package.find(kind, layer)
        assert section is not None
        row = index_bytes(package.sections.index(section)) + HEADER_BYTES
    data = np.fromfile(path, np.uint8)
    part = data[section.offset : section.offset + section.num_bytes]
    edit(part)
    if is_signed:
        digest = hashlib.sha256(part.tobytes()).digest()
        data[row + 24 : row + 56] = np.frombuffer(digest, np.uint8)
    write_signed(path, bytearray(data.tobytes()))


def edit_model(path: Path, at: int, fmt: str, value: float) -> None:
    """Change a number of the model block."""
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, HEADER_BYTES + at, value)
    write_signed(path, data)


def write_signed(path: Path, data: bytearray) -> None:
    (size,) = struct.unpack_from("<Q", data, 56)
    data[64:96] = hashlib.sha256(data[HEADER_BYTES : HEADER_BYTES + size]).digest()
    path.write_bytes(data)


def grow_scale(blob: npt.NDArray[np.uint8]) -> None:
    """The first scale of row 3: groups stand in panels of 16 rows."""
    (at,) = struct.unpack_from("<Q", blob, 32)
    scale = blob[at + 6 : at + 8].view("<f2")
    scale *= np.float16(1.5)


def flip_code(blob: npt.NDArray[np.uint8]) -> None:
    blob[64] ^= 0x01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(
    family: str, make_source: Fixture, make_package: Fixture, run_verify: Fixture
) -> None:
    source = make_source(family, "v1", QuantFormat(4, 32))
    is_folded = family.startswith("baichuan2")  # a head of unit rows, which float16 rounds
    found = run_verify(source, make_package(source, *(["--allow-lossy"] if is_folded else [])))
    assert found.passed, failed(found)
    assert (found.backend, found.thresholds.kind, found.diverges) == ("bcq_runtime", "int8", None)
    assert check(found, "weights").figures["different"] == int(is_folded)
    assert found.graph_thresholds.kind == ("float16" if is_folded else "float32")
    # Sums of float32 in another order stay below 1e-4, and a head that was rounded to float16 moves
    # logits by half a unit of 11 bits, some of which add up.
    limit = 2e-3 if is_folded else 1e-4
    assert check(found, "graph").figures["relative_error"] < limit


@pytest.mark.parametrize(
    ("family", "target", "fmt", "dtype", "words", "kinds"),
    [
        ("llama", None, None, "F16", (), ("float32", "float32")),
        ("llama", None, None, "F32", ("--allow-lossy",), ("float16", "float16")),
        ("llama", "v1", QuantFormat(4, 32), "F32", ("--allow-lossy",), ("int8", "float16")),
        ("qwen2", "compressed-tensors", QuantFormat(4, 32, False), "F16", (), ("int8", "float32")),
        ("llama_bias", "compressed-tensors", QuantFormat(3, 32), "F16", (), ("int8", "float32")),
        ("qwen3", "v2", QuantFormat(8, -1), "F16", ("--split-mb", "1"), ("int8", "float32")),
        ("qwen2", "v1", QuantFormat(2, 64, False), "F16", (), ("int8", "float32")),
        ("mistral", "int-quantized", W8A8, "F16", (), ("int8_token", "float32")),
        ("llama", "v1", QuantFormat(4, 32), "F16", ("--context", "64"), ("int8", "float32")),
    ],
)
def test_every_arithmetic_passes(
    family: str,
    target: str | None,
    fmt: QuantFormat | None,
    dtype: str,
    words: tuple[str, ...],
    kinds: tuple[str, str],
    make_source: Fixture,
    make_package: Fixture,
    run_verify: Fixture,
) -> None:
    source = make_source(family, target, fmt, dtype)
    found = run_verify(source, make_package(source, *words))
    assert found.passed, failed(found)
    assert (found.thresholds.kind, found.graph_thresholds.kind) == kinds
    assert ("graph" in [entry.name for entry in found.checks]) == (target is not None)


@pytest.mark.parametrize("edit", [grow_scale, flip_code])
def test_a_change_that_the_digest_does_not_know_is_named(
    edit: Edit, make_source: Fixture, make_package: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    package = own(make_package(source))
    edit_section(package, UP_KIND, 1, edit, is_signed=False)
    with pytest.raises(CheckpointError, match=f"{UP} is damaged"):
        run_verify(source, package)


def test_a_changed_scale_is_named(
    make_source: Fixture, make_package: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    package = own(make_package(source))
    edit_section(package, UP_KIND, 1, grow_scale)
    found = run_verify(source, package)
    assert not found.passed and found.diverges == UP
    figures = check(found, "weights").figures
    # float16: 1.5 times a scale is exact or off by half a unit in the last place
    assert figures["scale_change"] == pytest.approx(0.5, abs=1e-3)
    assert (figures["changed"], figures["rejected"]) == (0, 1)
    assert "graph" in failed(found)


def test_a_changed_nibble_is_named(
    make_source: Fixture, make_package: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    package = own(make_package(source))
    edit_section(package, UP_KIND, 1, flip_code)
    found = run_verify(source, package)
    assert not found.passed and found.diverges == UP
    assert check(found, "weights").figures["changed"] == 1 / (128 * 64)
    assert f"{UP}, stored as 4-bit, groups of 32, differs" in failed(found)["weights"]


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_tokenizer_s_flag_is_named(
    is_signed: bool, make_source: Fixture, make_package: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source("baichuan")
    package = own(make_package(source))

    def no_dummy_prefix(section: npt.NDArray[np.uint8]) -> None:
        section[4] ^= 1

    edit_section(package, TOKENIZER, None, no_dummy_prefix, is_signed)
    if not is_signed:
        with pytest.raises(CheckpointError, match="the tokenizer is damaged"):
            run_verify(source, package)
        return
    found = run_verify(source, package)
    assert set(failed(found)) == {"tokens"}
    assert "texts get other token ids, the first being" in failed(found)["tokens"]
    assert found.diverges is None  # the model itself is right


@pytest.mark.parametrize(
    ("at", "fmt", "value", "problem"),
    [
        (EPS_AT, "<f", 1e-3, "rms_norm_eps of the package: 0.001"),
        (ENDS_AT, "<i", 5, "end tokens of the package: number 0 is 5, and 2 in the source"),
    ],
)
def test_a_setting_is_named(
    at: int,
    fmt: str,
    value: float,
    problem: str,
    make_source: Fixture,
    make_package: Fixture,
    own: Fixture,
    run_verify: Fixture,
) -> None:
    source = make_source()
    package = own(make_package(source))
    edit_model(package, at, fmt, value)
    problems = failed(run_verify(source, package))
    assert problems["settings"].startswith(problem) and "weights" not in problems


def test_a_rotary_frequency_is_named(
    make_source: Fixture, make_package: Fixture, own: Fixture, run_verify: Fixture
) -> None:
    source = make_source()
    package = own(make_package(source))

    def turn(table: npt.NDArray[np.uint8]) -> None:
        values = table.view("<f4")
        values[1] = values[2]

    edit_section(package, POSITIONS, None, turn)
    problems = failed(run_verify(source, package))
    assert problems["settings"].startswith("positions of the package: number 1 is ")
    assert "graph" in problems and "weights" not in problems


@pytest.mark.parametrize(
    ("kind", "at", "name"),
    [(EMBEDDING, 64, "model.embed_tokens.weight"), (FINAL_NORM, 0, "model.norm.weight")],
)
def test_one_bit_of_a_float_is_named(
    kind: int,
    at: int,
    name: str,
    make_source: Fixture,
    make_package: Fixture,
    own: Fixture,
    run_verify: Fixture,
) -> None:
    source = make_source()
    package = own(make_package(source))

    def flip(section: npt.NDArray[np.uint8]) -> None:
        section[at] ^= 1

    edit_section(package, kind, None, flip)
    found = run_verify(source, package)
    assert set(failed(found)) == {"weights"} and found.diverges == name


def test_shards_pass_and_export_names_the_first(
    tmp_path: Path, make_source: Fixture, run_verify: Fixture, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_source(intermediate_size=8192), tmp_path / "m.bcq"
    words = ["export", "mobile", str(source), "-o", str(out), "--split-mb", "1"]
    assert main(words) == 0
    first = tmp_path / "m-00001-of-00003.bcq"
    assert f"next: bcquant verify {source} {first}\n" in capsys.readouterr().out
    found = run_verify(source, first)
    assert found.passed, failed(found)
    first.with_name("m-00002-of-00003.bcq").unlink()
    with pytest.raises(CheckpointError, match="m-00002-of-00003"):
        run_verify(source, first)


def test_another_model_is_refused(
    make_source: Fixture, make_package: Fixture, run_verify: Fixture
) -> None:
    package = make_package(make_source("qwen2"))
    with pytest.raises(CheckpointError, match="another model"):
        run_verify(make_source("llama", num_hidden_layers=3), package)


def test_long_prompts_are_cut_into_chunks_alike(
    make_source: Fixture, make_package: Fixture
) -> None:
    """Prefill, which `logits` does not take, gives the first token that single steps give."""
    source = make_source()
    kind = choose_backend(make_package(source), None)
    assert kind.open_exact is not None
    backend = kind.open_exact(make_package(source), 240)
    ids = [3 + i % 200 for i in range(200)]
    wanted = CoreBackend(open_model(source)).logits(ids)[-1]
    assert (
        backend.greedy(ids, 1) == [int(wanted.argmax())] == [int(backend.logits(ids)[-1].argmax())]
    )
    backend.close()
    backend.close()


def test_a_certificate_goes_into_a_sealed_package(
    tmp_path: Path, make_source: Fixture, make_package: Fixture, own: Fixture
) -> None:
    source, package = make_source(), own(make_package(make_source()))
    short = ["--max-tokens", "64", "--seq-len", "64", "--new-tokens", "4"]
    assert main(["verify", str(source), str(package), *short]) == 0
    certificate = package.with_name("m.bcq.certificate.json")
    sealed = tmp_path / "sealed.bcq"
    words = ["export", "mobile", str(source), "--certificate", str(certificate), "-o", str(sealed)]
    assert main(words) == 0
    with open_package(sealed) as opened:
        inside = opened.json(CERTIFICATE)
    assert inside == json.loads(certificate.read_text(encoding="utf-8"))
    assert inside["verdict"] == "pass" and inside["backend"] == "bcq_runtime"
    assert main(["verify", str(source), str(sealed), *short]) == 0


def test_a_failed_certificate_does_not(
    tmp_path: Path, make_source: Fixture, make_package: Fixture, own: Fixture
) -> None:
    source, package = make_source(), own(make_package(make_source()))
    edit_section(package, UP_KIND, 1, grow_scale)
    short = ["--max-tokens", "64", "--seq-len", "64", "--new-tokens", "4"]
    assert main(["verify", str(source), str(package), *short]) == 1
    certificate = str(package.with_name("m.bcq.certificate.json"))
    sealed = tmp_path / "sealed.bcq"
    words = ["export", "mobile", str(source), "--certificate", certificate, "-o", str(sealed)]
    assert main(words) == 2 and not sealed.exists()
