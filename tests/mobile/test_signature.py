"""Signed packages in C++: Ed25519 by others' answers, the attacks of the format's page, bcq-run."""

from __future__ import annotations

import base64
import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import ed25519_reference as reference
import mobile_api as api
import mobile_parts
import pytest
from mobile_api import Package, Runtime
from mobile_build import MOBILE, RELEASE, SANITIZED, library, objects, program, run
from tiny_package import tiny_package

from bcquant.io.package_signature import Signature, signed_message

VECTORS = Path(__file__).parents[1] / "vectors" / "ed25519_rfc8032.txt"
PARTS = ("sha256", "sha512", "ed25519")
SEED, OTHER = bytes(range(32)), bytes(range(1, 33))
KEY = reference.public_key(SEED)
Case = tuple[bytes, bytes, bytes]  # key, message, signature


def rfc_cases() -> list[Case]:
    lines = VECTORS.read_text(encoding="ascii").splitlines()[1:]
    words = [[bytes.fromhex(w.strip("-")) for w in line.split()] for line in lines]
    assert len(words) == 5
    return [(key, message, signature) for _, key, message, signature in words]


def hostile_cases() -> dict[str, Case]:
    """What a verifier that is not strict takes for right, or may."""
    message = b"message"
    signature = reference.sign(SEED, message)
    s = int.from_bytes(signature[32:], "little")
    assert s + reference.ORDER < 2**256
    cases = {
        "S + L": (KEY, message, signature[:32] + (s + reference.ORDER).to_bytes(32, "little")),
        "S of L": (KEY, message, signature[:32] + reference.ORDER.to_bytes(32, "little")),
        "all ones": (KEY, message, b"\xff" * 64),
        "zeros": (KEY, message, bytes(64)),
        "another message": (KEY, message + b"\0", signature),
        "another key": (reference.public_key(OTHER), message, signature),
    }
    # The identity in both places: 0 B = R + k A for every message.
    identity = reference.encode((0, 1))
    for name, key in bad_keys().items():
        cases[f"key: {name}"] = (key, message, identity + bytes(32))
    return cases


def bad_keys() -> dict[str, bytes]:
    """Points of small order, encodings that are not the only one, and what is no point."""
    p = reference.P
    eighth = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")
    y = int.from_bytes(eighth, "little")
    small = {"0": 0, "1": 1, "-1": p - 1, "of order 8": y, "of order 8, -y": p - y}
    keys = {}
    for name, value in {**small, **{f"p + {i}": p + i for i in range(19)}, "no point": 2}.items():
        for sign in (0, 1):
            keys[f"{name}, sign {sign}"] = (value | sign << 255).to_bytes(32, "little")
    return keys


@pytest.fixture(scope="module")
def verify(runtime: Runtime) -> Callable[[Case], bool]:
    call = runtime.lib._ZN3bcq14ed25519_verifyEPKhPKvmS1_
    call.restype = ctypes.c_bool
    return lambda case: bool(call(case[0], case[1], ctypes.c_size_t(len(case[1])), case[2]))


# ---- the equation ----


def test_the_vectors_of_rfc_8032(verify: Callable[[Case], bool]) -> None:
    for key, message, signature in rfc_cases():
        assert verify((key, message, signature))
        assert not verify((key, message + b"\0", signature))


def test_a_lax_verifiers_yes_is_a_no(runtime: Runtime, verify: Callable[[Case], bool]) -> None:
    for name, case in hostile_cases().items():
        assert not verify(case), name
    is_key = runtime.lib._ZN3bcq14ed25519_is_keyEPKh
    is_key.restype = ctypes.c_bool
    assert is_key(KEY) and all(is_key(key) for key, _, _ in rfc_cases())
    for name, key in bad_keys().items():
        assert not is_key(key), name


def test_openssl_says_the_same_of_1000_signatures_and_1000_damaged_ones(
    verify: Callable[[Case], bool],
) -> None:
    pytest.importorskip("cryptography")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

    rng = random.Random(0)
    for _ in range(1000):
        private = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        message = rng.randbytes(rng.randrange(300))
        case = private.public_key().public_bytes_raw(), message, private.sign(message)
        assert verify(case)
        parts = [bytearray(part) for part in case]
        spoilt = rng.choice([part for part in parts if part])
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        key, message, signature = map(bytes, parts)
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
            expected = True
        except (InvalidSignature, ValueError):
            expected = False
        assert verify((key, message, signature)) == expected


def cases_file(folder: Path) -> Path:
    """Right and wrong cases as signature_test reads them."""
    lines = []
    right = rfc_cases()
    rng = random.Random(2)
    wrong = [*hostile_cases().values()]
    for key, message, signature in right:
        for part in (key, signature):
            spoilt = bytearray(part)
            spoilt[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
            is_key = len(part) == 32
            wrong.append((bytes(spoilt), message, signature) if is_key
                         else (key, message, bytes(spoilt)))  # fmt: skip
    for cases, answer in ((right, 1), (wrong, 0)):
        lines += [f"{k.hex()} {m.hex() or '-'} {s.hex()} {answer}" for k, m, s in cases]
    path = folder / "cases.txt"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def test_all_cases_pass_the_sanitizers(tmp_path: Path) -> None:
    made = program(MOBILE / "tests/signature_test.cpp", tmp_path, SANITIZED)
    assert run([made, cases_file(tmp_path)]).endswith("signature_test: all passed\n")


def test_arm_answers_alike(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    made = mobile_parts.build_program(
        tmp_path / "arm", "signature_test", PARTS, ("-static",), "aarch64-linux-gnu-"
    )
    assert run(["qemu-aarch64", made, cases_file(tmp_path)]).endswith("all passed\n")


# ---- packages ----


def signature_of(data: bytes, seed: bytes = SEED) -> Signature:
    value = reference.sign(seed, signed_message(data[64:96]))
    return Signature(reference.public_key(seed), value)


def check(package: Package, signature: bytes | None, key: bytes = KEY) -> None:
    """bcq_package_check_signature; raises what it refuses."""
    size = ctypes.c_size_t(len(signature or b""))
    call = package.runtime.lib.bcq_package_check_signature
    package.runtime.check(call(package.handle, signature, size, key))


def refused(call: Callable[[], object], status: int, about: str) -> None:
    with pytest.raises(api.RuntimeFailure, match=about) as caught:
        call()
    assert caught.value.status == status


def test_a_signed_package_is_its_signers_and_nobody_elses(runtime: Runtime) -> None:
    [data] = tiny_package().build()
    signature = signature_of(data)
    package = runtime.open_memory([data])
    check(package, signature.to_bytes())
    other = reference.public_key(OTHER)
    refused(lambda: check(package, signature.to_bytes(), other), api.BAD_BLOB, "another key")
    # The attacker's own key in the file, or his signature under the right one.
    forged = Signature(KEY, signature_of(data, OTHER).value).to_bytes()
    refused(lambda: check(package, forged), api.BAD_BLOB, "not of this package")
    refused(lambda: check(package, signature_of(data, OTHER).to_bytes()), api.BAD_BLOB, "another")
    package.close()


def test_a_stripped_or_damaged_signature_is_refused(runtime: Runtime) -> None:
    [data] = tiny_package().build()
    signature = signature_of(data).to_bytes()
    package = runtime.open_memory([data])
    refused(lambda: check(package, None), api.BAD_BLOB, "has no signature")
    refused(lambda: check(package, b""), api.BAD_BLOB, "has no signature")
    for size in range(1, len(signature)):
        refused(lambda size=size: check(package, signature[:size]), api.BAD_BLOB, "copy it again")
    refused(lambda: check(package, signature + b"\0"), api.BAD_BLOB, "113 bytes of 112")
    for bit in range(0, 8 * len(signature), 3):
        spoilt = bytearray(signature)
        spoilt[bit // 8] ^= 1 << bit % 8
        status = api.UNSUPPORTED if 64 <= bit < 96 else api.BAD_BLOB
        refused(lambda spoilt=spoilt: check(package, bytes(spoilt)), status, ".")
    package.close()


def test_the_signature_of_another_package_is_refused(runtime: Runtime) -> None:
    made = tiny_package()
    [data] = made.build()
    made.row(65).data = b"{{ 'changed' }}"  # and with it the index, whose digest is right again
    [changed] = made.build()
    package = runtime.open_memory([changed])
    about = "not of this package"
    refused(lambda: check(package, signature_of(data).to_bytes()), api.BAD_BLOB, about)
    package.close()


def test_keys_that_are_none_are_refused(runtime: Runtime) -> None:
    [data] = tiny_package().build()
    package = runtime.open_memory([data])
    for key in bad_keys().values():
        signature = Signature(key, reference.encode((0, 1)) + bytes(32)).to_bytes()
        refused(lambda k=key, s=signature: check(package, s, k), api.BAD_ARGUMENT, "no key of")
    refused(lambda: check(package, signature_of(data).to_bytes(), None), api.BAD_ARGUMENT, "null")  # type: ignore[arg-type]
    package.close()


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_a_package_is_checked_before_its_signature(runtime: Runtime, num_threads: int) -> None:
    [data] = tiny_package().build()
    signature = signature_of(data).to_bytes()
    package = runtime.open_memory([data], api.STRUCTURE)
    refused(lambda: check(package, signature), api.BAD_ARGUMENT, "not compared yet")
    runtime.check(runtime.lib.bcq_package_check(package.handle, num_threads))
    check(package, signature)
    package.close()
    damaged = data[:-1] + bytes([data[-1] ^ 1])
    package = runtime.open_memory([damaged], api.STRUCTURE)
    whole = runtime.lib.bcq_package_check
    refused(
        lambda: runtime.check(whole(package.handle, num_threads)),
        api.BAD_BLOB, "'generation defaults' is damaged",
    )  # fmt: skip
    refused(lambda: check(package, signature), api.BAD_ARGUMENT, "not compared yet")
    refused(lambda: runtime.check(whole(package.handle, -1)), api.BAD_ARGUMENT, "0 to 256")
    package.close()


# ---- bcq-run ----


@pytest.fixture(scope="module")
def bcq_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bcq_run")
    parts = tuple(path.stem for path in sorted((MOBILE / "runtime").glob("*.cpp")))
    runtime = library(folder, parts)
    [made] = objects([MOBILE / "tools/bcq_run.cpp"], RELEASE)[:1]
    run(["gcc", made, runtime, f"-Wl,-rpath,{folder}", "-lm", "-o", folder / "bcq-run"])
    return folder / "bcq-run"


def said(bcq_run: Path, *words: str | Path) -> tuple[int, str, str]:
    command = [str(word) for word in (bcq_run, *words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_bcq_run_takes_a_key_as_digits_bytes_and_pem(tmp_path: Path, bcq_run: Path) -> None:
    path = tiny_package().write(tmp_path)
    Path(f"{path}.sig").write_bytes(signature_of(path.read_bytes()).to_bytes())
    raw, pem = tmp_path / "key", tmp_path / "key.pem"
    raw.write_bytes(KEY)
    body = base64.b64encode(bytes.fromhex("302a300506032b6570032100") + KEY).decode()
    pem.write_text(f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    for key in (KEY.hex(), raw, pem):
        status, out, _ = said(bcq_run, path, "--plan", "--key", key)
        assert (status, "total" in out) == (0, True)


@pytest.mark.parametrize(
    ("key", "status", "about"),
    [
        (reference.public_key(OTHER).hex(), 1, "another key"),
        ("0" * 64, 1, "no key of Ed25519"),
        ("{m}", 1, "no public key of Ed25519"),
        ("none.pem", 1, "cannot read the key"),
    ],
)
def test_bcq_run_says_no_text_of_a_package_that_another_signed(
    tmp_path: Path, bcq_run: Path, key: str, status: int, about: str
) -> None:
    path = tiny_package().write(tmp_path)
    Path(f"{path}.sig").write_bytes(signature_of(path.read_bytes()).to_bytes())
    words = [path, "--ids", "1", "--key", key.replace("{m}", str(path))]
    found, out, error = said(bcq_run, *words)
    assert (found, out) == (status, "") and about in error


def test_bcq_run_says_no_text_of_an_unsigned_package(tmp_path: Path, bcq_run: Path) -> None:
    path = tiny_package().write(tmp_path)
    status, out, error = said(bcq_run, path, "--ids", "1", "--key", KEY.hex())
    assert (status, out) == (1, "") and "has no signature" in error
    words = [path, "--ids", "1", "--key", KEY.hex(), "--check", "structure"]
    status, out, error = said(bcq_run, *words)
    assert (status, out) == (2, "") and "--check all" in error
