"""Swift and Objective-C over the C API: the module map is compiled, Swift is only parsed.

No Swift compiler can be had here: what the module gives is checked by clang for an iPhone, and
Swift's syntax by tree-sitter. Nothing of it ran on a device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mobile_build import MOBILE, run

IOS = MOBILE / "ios"
SWIFT = sorted(IOS.glob("**/*.swift"))
MODULE_USE = """
@import CBcq;
int main(void) {
  bcq_package* package = 0;
  bcq_options options = {.kv_type = BCQ_KV_F16, .activations = -1};
  bcq_status status = bcq_package_open("m.bcq", BCQ_CHECK_ALL, &package);
  return status == BCQ_OK ? options.activations : (int)bcq_session_position(0);
}
"""


def clang() -> str:
    for name in ("clang-22", "clang"):
        if shutil.which(name) is not None:
            return name
    pytest.skip("clang is not installed")


def import_module(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """clang's verdict on Objective-C that imports the module in `folder`."""
    path = folder / "use.m"
    path.write_text(source, encoding="utf-8")
    flags = ["-ffreestanding", "-Wall", "-Werror", "-fmodules", f"-fmodules-cache-path={folder}/c"]
    words = [clang(), "--target=arm64-apple-ios15", "-fsyntax-only", *flags, f"-I{folder}", path]
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """What an XCFramework is given."""
    run(["sh", IOS / "build_headers.sh", tmp_path / "headers"])
    return tmp_path / "headers"


def test_the_module_map_imports_the_api(headers: Path) -> None:
    done = import_module(headers, MODULE_USE)
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_module_lacks_is_an_error(headers: Path) -> None:
    done = import_module(headers, MODULE_USE.replace("bcq_session_position", "bcq_no_such_call"))
    assert done.returncode != 0 and "bcq_no_such_call" in done.stderr


def test_every_c_name_in_swift_is_declared(headers: Path) -> None:
    declared = "".join(path.read_text(encoding="utf-8") for path in (headers / "bcq").iterdir())
    declared = re.sub(r"//.*", "", declared)
    known = set(re.findall(r"\b(?:bcq|BCQ)_\w+", declared))
    used: set[str] = set()
    for path in SWIFT:
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        used |= set(re.findall(r"\b(?:bcq|BCQ)_\w+", text))
    # What the bindings promise beside tokens and text.
    wrapped = {"chat_render", "stop_push", "stop_end", "session_save", "session_load"}
    wrapped |= {"session_set_overflow", "session_match", "session_ids", "session_append"}
    wrapped |= {"package_check", "package_check_signature"}
    assert {f"bcq_{name}" for name in wrapped} <= used
    assert used <= known, used - known


def test_swift_passes_c_functions_as_many_arguments_as_they_have(headers: Path) -> None:
    arity = {}
    for path in (headers / "bcq").iterdir():
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        for name, given in re.findall(r"\b(bcq_\w+)\(([^()]*)\);", text):
            arity[name] = 0 if given.strip() in ("", "void") else given.count(",") + 1
    calls = 0
    for path in SWIFT:
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"\b(bcq_\w+)\(", text):
            if found[1] in arity:
                calls += 1
                assert arguments(text, found.end()) == arity[found[1]], f"{path.name}: {found[1]}"
    assert calls > 35


def arguments(text: str, at: int) -> int:
    """Of the call whose opening parenthesis is before `at`."""
    depth, commas, start = 1, 0, at
    while depth:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        commas += depth == 1 and text[at] == ","
        at += 1
    return 0 if not text[start : at - 1].strip() else commas + 1


@pytest.mark.parametrize("path", SWIFT, ids=lambda path: path.name)
def test_swift_has_no_syntax_error(path: Path) -> None:
    tree_sitter = pytest.importorskip("tree_sitter", reason="PyPI tree-sitter is not installed")
    swift = pytest.importorskip("tree_sitter_swift", reason="PyPI tree-sitter-swift is missing")
    tree = tree_sitter.Parser(tree_sitter.Language(swift.language())).parse(path.read_bytes())
    assert not tree.root_node.has_error, str(tree.root_node)[:2000]
