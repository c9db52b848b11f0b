"""The JNI natives under `java -Xcheck:jni`, and the Kotlin library over them.

A JDK runs the very natives that Android does, but no Android: nothing here ran on a device. Kotlin
is compiled where mobile/android/tests/install_kotlin.sh was run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import ed25519_reference
import numpy as np
import pytest
import tiny_tokenizers
from factory import make_tiny
from mobile_build import CSRC, FLAGS, MOBILE, RELEASE, ROOT, objects, run

from bcquant.io.package import open_package
from bcquant.io.package_index import FINAL_NORM
from bcquant.io.package_signature import Signature, signature_path, signed_message
from bcquant.models.source import open_model
from bcquant.runtime.chat import Message
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.text_codec import Tokenizer
from bcquant.runtime.tokenizer import open_tokenizer

Export = Callable[..., Path]
ANDROID = MOBILE / "android"
KOTLIN = ANDROID / "src/main/kotlin/org/bcquant"
KOTLIN_HOME = ROOT / "build/kotlin/node_modules/kotlin-compiler"
PROMPT = "héllo 你好 模型😀\0x"
NUM_TOKENS, CONTEXT = 60, 128
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OUT_OF_MEMORY, CANCELLED = 7, 8
SEED = bytes(range(32))  # of the key that signs
KEY = ed25519_reference.public_key(SEED)


def jdk_include() -> Path:
    """Folder of jni.h."""
    for program in ("java", "javac"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    home = Path(os.path.realpath(str(shutil.which("javac")))).parents[1]
    if not (home / "include/jni.h").is_file():
        pytest.skip(f"{home} has no include/jni.h")
    return home / "include"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libbcq_jni.so, compiled and linked as jni/CMakeLists.txt does it."""
    include = jdk_include()
    folder = tmp_path_factory.mktemp("jni")
    found = objects(sorted(MOBILE.glob("runtime/*.cpp")), RELEASE)
    paths = (include, include / "linux", MOBILE / "include", CSRC / "include")
    for source in sorted((ANDROID / "jni").glob("*.cpp")):
        found.append(folder / f"{source.stem}.o")
        run(["g++", *FLAGS, *RELEASE, *(f"-I{p}" for p in paths), "-c", source, "-o", found[-1]])
    link = [f"-Wl,--version-script={ANDROID / 'jni/exports.map'}", "-Wl,-z,defs"]
    link += ["-Wl,--gc-sections", "-Wl,-z,max-page-size=16384", "-pthread", "-lm"]
    run(["gcc", "-shared", *found, *link, "-o", folder / "libbcq_jni.so"])
    return folder / "libbcq_jni.so"


@dataclass(frozen=True)
class Case:
    """A tiny package, and what the Python engine says to the prompt."""

    package: Path
    tokenizer: Tokenizer
    ids: list[int]
    drawn: list[int]

    def text(self, ids: Iterable[int]) -> str:
        stream = self.tokenizer.stream()
        return "".join(stream.push(i) for i in ids) + stream.flush()

    def chat_ids(self) -> list[int]:
        messages = [("system", "Be brief."), ("user", "你好 😀")]
        return self.tokenizer.encode_chat([Message(role=r, content=c) for r, c in messages])


def greedy(folder: Path, ids: list[int]) -> list[int]:
    """What the Python engine draws."""
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, "exact"))
    model.reserve(CONTEXT)
    drawn = [int(np.argmax(model.last_logits(np.array(ids))))]
    while len(drawn) < NUM_TOKENS:
        drawn.append(int(np.argmax(model.last_logits(np.array(drawn[-1:])))))
    return drawn


def sign(path: Path) -> None:
    """Write the signature of a package beside it."""
    with open_package(path) as package:
        message = signed_message(bytes.fromhex(package.sha256))
    signature = Signature(KEY, ed25519_reference.sign(SEED, message))
    signature_path(path).write_bytes(signature.to_bytes())


def damaged(path: Path, to: Path) -> Path:
    """A copy whose last norm differs in one bit."""
    with open_package(path) as package:
        section = package.find(FINAL_NORM)
        assert section is not None
        data = bytearray(path.read_bytes())
    data[section.offset] ^= 1
    to.write_bytes(data)
    return to


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> Case:
    folder = tmp_path_factory.mktemp("case")
    source = tiny_tokenizers.sentencepiece_folder(folder / "source", add_bos=True)
    settings = source / "tokenizer_config.json"
    told = {**json.loads(settings.read_bytes()), "chat_template": TEMPLATE}
    settings.write_text(json.dumps(told), encoding="utf-8")
    make_tiny("llama", source, "F16", vocab_size=384, eos_token_id=None)
    package = export_mobile(source, folder / "m.bcq")
    sign(package)
    tokenizer = open_tokenizer(source)
    ids = tokenizer.encode(PROMPT, parse_special=False)
    return Case(package, tokenizer, ids, greedy(source, ids))


@dataclass(frozen=True)
class Plain:
    """A package without tokenizer whose shards lie apart, linked into one folder."""

    package: Path
    drawn: list[int]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> Plain:
    folder = tmp_path_factory.mktemp("plain")
    source = make_tiny("llama", folder / "source", "F16", eos_token_id=None, hidden_size=512)
    export_mobile(source, folder / "m.bcq", split_mb=1)
    shards = sorted(folder.glob("*.bcq"))
    assert len(shards) > 1
    (folder / "linked").mkdir()
    for number, shard in enumerate(shards):  # as asset packs are: a folder each
        pack = folder / f"pack{number}"
        pack.mkdir()
        (folder / "linked" / shard.name).symlink_to(shard.rename(pack / shard.name))
    return Plain(folder / "linked" / shards[0].name, greedy(source, [1, 5, 9]))


def checked_java(folder: Path) -> list[str]:
    """java that checks every JNI call and leaves its report of a crash in `folder`."""
    text = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8"]
    return ["java", "-Xcheck:jni", f"-XX:ErrorFile={folder}/crash.log", *text]


def answers(said: str) -> dict[str, str]:
    """Lines of a check program; -Xcheck:jni must have found nothing."""
    for word in ("WARNING", "FATAL ERROR", "JNI call made"):
        assert word not in said, said[:3000]
    told = dict(line.split(" ", 1) for line in said.splitlines())
    assert told["done"] == "true"
    return told


@pytest.fixture(scope="module")
def java(
    library: Path, case: Case, plain: Plain, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What Check.java says."""
    folder = tmp_path_factory.mktemp("java")
    run(["javac", "-Xlint:all", "-Werror", "-d", folder, *ANDROID.glob("tests/java/**/*.java")])
    words: list[str | Path] = [*checked_java(folder), f"-Dbcq.library={library}", "-cp", folder]
    words += ["org.bcquant.Check", case.package, PROMPT.encode().hex(), plain.package]
    words += [folder / "saved 模", KEY.hex(), damaged(case.package, folder / "damaged.bcq")]
    return answers(run(words))


def test_java_is_told_what_the_package_holds(java: dict[str, str], case: Case) -> None:
    assert json.loads(java["info"])[:3] == [384, 256, 1]
    plan = json.loads(java["plan"])
    assert len(plan) == 5 and sum(plan[:4]) == plan[4]
    assert json.loads(java["origin"])["exporter"] == "mobile"
    assert java["certificate"] == "null"


def test_java_draws_the_ids_of_the_python_engine(java: dict[str, str], case: Case) -> None:
    assert json.loads(java["encoded"]) == case.ids
    assert json.loads(java["drawn"]) == case.drawn
    assert int(java["position"]) == len(case.ids) + NUM_TOKENS - 1


def test_penalties_are_of_every_token_that_is_held(java: dict[str, str], case: Case) -> None:
    drawn = json.loads(java["fresh_drawn"])  # under a penalty above every logit
    assert len(set(drawn)) == len(drawn) and not set(drawn) & set(case.ids)
    assert len(set(case.drawn)) < len(case.drawn)  # which is not so without


def test_java_opens_shards_that_are_links_into_packs(java: dict[str, str], plain: Plain) -> None:
    assert json.loads(java["plain_info"])[2] == 0
    assert json.loads(java["plain_drawn"]) == plain.drawn


def test_java_renders_the_conversation_of_python(java: dict[str, str], case: Case) -> None:
    chat = bytes.fromhex(java["chat"]).decode()
    assert chat == "<system>Be brief.\n<user>你好 😀\n<assistant>"
    assert json.loads(java["chat_ids"]) == case.chat_ids()


@pytest.mark.parametrize("name", ["pieces", "prompt_pieces"])
def test_no_piece_splits_a_character(java: dict[str, str], case: Case, name: str) -> None:
    ids = {"pieces": case.drawn, "prompt_pieces": case.ids}[name]
    pieces = [bytes.fromhex(piece) for piece in java[name].split(",")]
    assert len(pieces) == len(ids) + 2
    assert "".join(piece.decode("utf-8", "strict") for piece in pieces) == case.text(ids)


def test_the_prompt_has_characters_of_several_tokens(case: Case) -> None:
    # Otherwise the test above could not fail.
    stream = case.tokenizer.stream()
    assert [stream.push(i) for i in case.ids].count("") >= 3
    assert "😀" in case.text(case.ids)


def test_a_stop_string_ends_the_text_unseen(java: dict[str, str], case: Case) -> None:
    shown = b"".join(bytes.fromhex(piece) for piece in java["stopped_pieces"].split(","))
    assert shown.decode() == case.text(case.ids).split("模")[0]
    assert (java["stopped_pieces_stopped"], java["pieces_stopped"]) == ("true", "false")


def test_a_saved_session_goes_on_where_it_was(java: dict[str, str], case: Case) -> None:
    assert json.loads(java["held"]) == json.loads(java["loaded_held"]) == case.ids
    assert java["match"] == f"3 {len(case.ids)}"
    assert json.loads(java["loaded_drawn"]) == case.drawn


def test_a_full_context_is_what_the_policy_says(java: dict[str, str], case: Case) -> None:
    held, more = case.ids[:20], case.ids[:8]
    assert java["overflow_0"].startswith("2 ")
    assert json.loads(java["overflow_ids_0"]) == held
    assert java["overflow_1"] == java["overflow_2"] == "nothing was thrown"
    assert json.loads(java["overflow_ids_1"]) == held + more[:4]  # as many as 24 have room for
    # Behind the 5 kept half of the other 15 stay, 7 of them.
    assert json.loads(java["overflow_ids_2"]) == held[:5] + held[-7:] + more


def test_the_signature_is_checked(java: dict[str, str]) -> None:
    assert java["signed"] == "nothing was thrown"


def test_a_damaged_weight_opens_unchecked(java: dict[str, str]) -> None:
    assert java["damaged_unchecked"] == "true"


@pytest.mark.parametrize(
    ("name", "status", "about"),
    [
        ("no_file", 1, "/nö/模😀.bcq"),
        ("zero_in_path", 1, "zero byte"),
        ("null_path", 1, "null"),
        ("budget", OUT_OF_MEMORY, "budget"),
        ("long_context", 2, "positions"),
        ("threads", 1, "thread"),
        ("kind", 1, ""),
        ("no_chat", 3, "chat frames"),
        ("few_roles", 1, "as many roles"),
        ("no_role", 1, "role"),
        ("no_tokenizer", 3, "no tokenizer"),
        ("no_text", 3, "no tokenizer"),
        ("null_content", 1, "null"),
        ("bad_id", 1, "vocabulary"),
        ("no_logits", 1, "append tokens first"),
        ("null_ids", 1, "null"),
        ("no_ids", 1, "none"),
        ("beyond", 1, ""),
        ("empty_stop", 1, "empty"),
        ("not_begun", 1, "begin"),
        ("cancelled", CANCELLED, "cancelled"),
        ("closed_model", 1, "model is closed"),
        ("closed_session", 1, "session is closed"),
        ("loaded_no_logits", 1, "append tokens first"),
        ("small_context", 2, ""),
        ("no_state", 1, ""),
        ("zero_in_state", 1, "zero byte"),
        ("no_policy", 1, "policy 3"),
        ("keep", 1, "keep is 24"),
        ("damaged_signature", 6, ""),
        ("no_signature", 6, ""),
        ("short_key", 1, "32 bytes"),
        ("null_key", 1, "null"),
        ("unchecked", 1, ""),
        ("damaged", 6, "SHA-256"),
    ],
)
def test_what_is_refused_is_an_exception(
    java: dict[str, str], name: str, status: int, about: str
) -> None:
    said, _, text = java[name].partition(" ")
    assert said == str(status), java[name]
    assert about in text and len(text) > 10


def test_the_natives_are_those_that_kotlin_and_java_declare(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    lines = run(["nm", "-D", "--defined-only", library]).splitlines()
    shown = {line.split()[2] for line in lines}
    kotlin = (KOTLIN / "BcqNative.kt").read_text(encoding="utf-8")
    java = (ANDROID / "tests/java/org/bcquant/BcqNative.java").read_text(encoding="utf-8")
    in_kotlin = re.findall(r"external fun (\w+)\(", kotlin)
    in_java = re.findall(r"native [\w\[\]]+ (\w+)\(", java)
    assert sorted(in_kotlin) == sorted(in_java)
    assert shown == {f"Java_org_bcquant_BcqNative_{name}" for name in in_kotlin}


def test_the_library_lies_on_pages_of_16_kb(library: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    loads = re.findall(r"LOAD.*\s(0x[0-9a-f]+)$", run(["readelf", "-lW", library]), re.MULTILINE)
    assert loads and {int(align, 16) for align in loads} == {16384}
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run(["readelf", "-dW", library]))
    assert {name.split(".")[0] for name in needed} <= {"libm", "libc", "ld-linux-x86-64"}


def test_cmake_builds_the_natives_over_the_runtime(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    include = jdk_include()
    folders = f"-DJNI_INCLUDE={include};{include / 'linux'}"
    commands = "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    run(["cmake", "-S", ANDROID / "jni", "-B", tmp_path, folders, commands])
    listed = json.loads((tmp_path / "compile_commands.json").read_text(encoding="utf-8"))
    built = {Path(entry["file"]).resolve() for entry in listed}
    assert {*ANDROID.glob("jni/*.cpp"), *MOBILE.glob("runtime/*.cpp")} <= built


def test_gradle_names_files_that_are_there() -> None:
    gradle = (ANDROID / "build.gradle.kts").read_text(encoding="utf-8")
    named = re.findall(r'(?:file|consumerProguardFiles)\("([^"]+)"\)', gradle)
    assert sorted(named) == ["consumer-rules.pro", "jni/CMakeLists.txt"]
    assert all((ANDROID / name).is_file() for name in named)


# ---- Kotlin ----


@pytest.fixture(scope="module")
def kotlin(library: Path, case: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What Check.kt says over the library's Kotlin."""
    if not (KOTLIN_HOME / "lib/kotlin-compiler.jar").is_file():
        pytest.skip("no Kotlin compiler: sh mobile/android/tests/install_kotlin.sh")
    folder = tmp_path_factory.mktemp("kotlin")
    flows = KOTLIN_HOME / "lib/kotlinx-coroutines-core-jvm.jar"
    words: list[str | Path] = ["java", "-cp", KOTLIN_HOME / "lib/kotlin-compiler.jar"]
    words += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-reflect", "-Werror"]
    words += ["-kotlin-home", KOTLIN_HOME, "-cp", flows, "-d", folder]
    run([*words, KOTLIN, ANDROID / "tests/kotlin"])
    (folder / "prompt.txt").write_bytes(PROMPT.encode())
    classes = f"{folder}:{flows}:{KOTLIN_HOME / 'lib/kotlin-stdlib.jar'}"
    words = [*checked_java(folder), f"-Djava.library.path={library.parent}", "-cp", classes]
    return answers(
        run([*words, "CheckKt", case.package, folder / "prompt.txt", folder / "saved", KEY.hex()])
    )


def test_kotlin_draws_the_ids_of_the_python_engine(kotlin: dict[str, str], case: Case) -> None:
    assert json.loads(kotlin["encoded"]) == case.ids
    assert json.loads(kotlin["chat_ids"]) == case.chat_ids()
    assert bytes.fromhex(kotlin["chat"]).decode().startswith("<system>Be brief.")
    assert json.loads(kotlin["drawn"]) == case.drawn
    assert (kotlin["ids_finish"], kotlin["text_finish"]) == ("MAX_TOKENS", "MAX_TOKENS")
    assert int(kotlin["plan"]) > 0


def test_kotlin_gives_the_text_of_the_python_engine(kotlin: dict[str, str], case: Case) -> None:
    assert bytes.fromhex(kotlin["text"]).decode() == case.text(case.drawn)
    assert kotlin["flow"] == kotlin["text"]
    assert kotlin["same_seed"] == "true"


def test_kotlin_heeds_stop_strings_and_a_full_context(kotlin: dict[str, str], case: Case) -> None:
    whole, at = (bytes.fromhex(kotlin[name]).decode() for name in ("text", "stop_at"))
    assert bytes.fromhex(kotlin["stopped"]).decode() == whole[: whole.index(at)]
    assert kotlin["stop_finish"] == "STOPPED"
    assert kotlin["full"] == "CONTEXT_FULL"
    assert kotlin["no_room"].startswith("2 ")


def test_kotlin_takes_up_a_saved_session(kotlin: dict[str, str], case: Case) -> None:
    num = len(case.ids)
    assert json.loads(kotlin["held"]) == case.ids
    assert json.loads(kotlin["rest"]) == [case.ids[-1], num - 1]
    assert json.loads(kotlin["loaded_drawn"]) == case.drawn
    assert (kotlin["match"], kotlin["other_rest"]) == ("3", str(num))
    assert kotlin["small_context"].startswith("2 ")


def test_kotlin_heeds_the_policy_of_a_full_context(kotlin: dict[str, str], case: Case) -> None:
    room = 32 - len(case.ids)
    assert 0 < room < NUM_TOKENS
    # The last id that is drawn need not be held.
    for policy in ("ERROR", "STOP"):
        assert kotlin[f"finish_{policy}"] == "CONTEXT_FULL"
        assert int(kotlin[f"num_{policy}"]) == room + 1
    assert (kotlin["finish_SLIDE"], kotlin["num_SLIDE"]) == ("MAX_TOKENS", str(NUM_TOKENS))
    assert json.loads(kotlin["kept_SLIDE"]) == case.ids[:5]
    assert kotlin["slide_after_cancel"] == "true"


def test_kotlin_checks_the_signature(kotlin: dict[str, str]) -> None:
    assert kotlin["other_key"].split()[0] in ("1", "6")  # these bytes may be no key at all


def test_a_flow_whose_collector_leaves_stops_computing(kotlin: dict[str, str]) -> None:
    assert (kotlin["flow_part"], kotlin["flow_left"]) == ("2", "true")


def test_cancel_and_close_from_another_thread_end_a_text(kotlin: dict[str, str]) -> None:
    assert kotlin["endings"] == "[CANCELLED, CANCELLED]"
    assert kotlin["others"] == "1"  # at the first id, which was the last


def test_what_is_closed_says_so(kotlin: dict[str, str]) -> None:
    assert kotlin["closed_session"] == "1 The session is closed."
    assert kotlin["closed_model"] == "1 The model is closed."
    assert "模😀.bcq" in kotlin["no_file"]
