"""The library for Android: built for its target, linked against an allow-list, run under qemu.

No NDK can be had here. Three things of it are stood in for: its libraries by ones made from
mobile/android/symbols.txt, its headers by glibc's, and what its compiler-rt and crtbegin_so.o put
into a library by `_FROM_THE_NDK`. So this proves the symbols, the layout of the file and its code,
which qemu runs over a glibc that has the missing names; nothing ran on a device.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from mobile_build import CACHE, MOBILE, RELEASE, run
from mobile_cross import AARCH64, Target, compiled, need, runtime_objects
from platform_cases import DRIVER, EXACT, HERE, INT8, KV_F32, Said, ask, build, spoken_package

SYMBOLS = MOBILE / "android/symbols.txt"
JNI = MOBILE / "android/jni"
HEADERS = CACHE / "android_headers"
SYSROOT = Path("/usr/aarch64-linux-gnu")
CPP = SYSROOT / "include/c++/12"
TRIPLE = "--target=aarch64-linux-android24"
LINK = (TRIPLE, "-nostdlib", "-shared", "-fuse-ld=lld", "-Wl,-z,max-page-size=16384")
CLANG = Target(
    "clang++-22",
    "aarch64",
    (
        TRIPLE, "-ffreestanding", "-O2", "-mno-outline-atomics", "-nostdinc++",
        f"-isystem{HEADERS}", f"-isystem{CPP}", f"-isystem{CPP}/aarch64-linux-gnu",
        f"-isystem{SYSROOT}/include",
    ),
)  # fmt: skip

# bionic's errno; glibc's headers say __errno_location.
_ERRNO = """#pragma once
#include <linux/errno.h>
extern "C" int* __errno(void);
#define errno (*__errno())
"""
# Below API 29 thread-local variables are compiler-rt's; pthread_atfork is crtbegin_so.o's.
_FROM_THE_NDK = """
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
__attribute__((visibility("hidden"))) void* __dso_handle = &__dso_handle;
int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void*);

__attribute__((visibility("hidden"))) int pthread_atfork(void (*prepare)(void),
                                                         void (*parent)(void),
                                                         void (*child)(void)) {
  return __register_atfork(prepare, parent, child, &__dso_handle);
}

struct Control {
  size_t bytes, align;
  uintptr_t key;
  const void* start;
};

__attribute__((visibility("hidden"))) void* __emutls_get_address(Control* control) {
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&mutex);
  pthread_key_t key;
  if (control->key == 0 && pthread_key_create(&key, free) == 0) control->key = key + 1u;
  pthread_mutex_unlock(&mutex);
  void* value = pthread_getspecific((pthread_key_t)(control->key - 1));
  if (value != nullptr) return value;
  value = calloc(1, control->bytes);
  if (control->start != nullptr) memcpy(value, control->start, control->bytes);
  pthread_setspecific((pthread_key_t)(control->key - 1), value);
  return value;
}
}
"""
# What glibc lacks of bionic's names.
_SHIM = "int* __errno_location(void); int* __errno(void) { return __errno_location(); }"


def allowed() -> dict[str, set[str]]:
    """Library -> its symbols, as the list has them."""
    found: dict[str, set[str]] = {}
    for line in SYMBOLS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            library, symbol = line.split()
            found.setdefault(library, set()).add(symbol)
    return found


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libc.so and libm.so with the symbols of the list and nothing else."""
    need("clang++-22", "ld.lld-22", AARCH64.compiler, "qemu-aarch64", "readelf", "nm")
    folder = tmp_path_factory.mktemp("stubs")
    for library in ("libc", "libm"):
        source = folder / f"{library}.s"
        names = sorted(allowed().get(library, set()))
        source.write_text("".join(f".globl {name}\n{name}: ret\n" for name in names))
        soname = f"-Wl,-soname,{library}.so"
        run(["clang++-22", *LINK, soname, source, "-o", folder / f"{library}.so"])
    return folder


def android_objects(folder: Path) -> list[Path]:
    """The runtime for Android, and what the NDK would add."""
    HEADERS.mkdir(parents=True, exist_ok=True)
    (HEADERS / "errno.h").write_text(_ERRNO)
    source = folder / "from_the_ndk.cpp"
    source.write_text(_FROM_THE_NDK)
    return [compiled(CLANG, source), *runtime_objects(CLANG)]


def link(stubs: Path, made: Path, found: Iterable[Path], exports: Path) -> Path:
    """A stripped library; a symbol that the list lacks is an error."""
    words = ["-Wl,--no-undefined", "-Wl,--gc-sections", "-Wl,-Bsymbolic", "-Wl,--strip-all"]
    words += [f"-Wl,--version-script={exports}", f"-Wl,-soname,{made.name}", f"-L{stubs}"]
    run(["clang++-22", *LINK, *words, *found, "-lc", "-lm", "-o", made])
    return made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, stubs: Path) -> Path:
    folder = tmp_path_factory.mktemp("android")
    found = android_objects(folder)
    return link(stubs, folder / "libbcq_runtime.so", found, MOBILE / "exports.map")


@pytest.fixture(scope="module")
def jni_library(tmp_path_factory: pytest.TempPathFactory, stubs: Path) -> Path:
    if shutil.which("javac") is None:
        pytest.skip("javac is not installed: its JDK has jni.h")
    include = Path(os.path.realpath(str(shutil.which("javac")))).parents[1] / "include"
    folder = tmp_path_factory.mktemp("android_jni")
    flags = (*CLANG.flags, f"-I{include}", f"-I{include / 'linux'}")
    found = android_objects(folder)
    found += [compiled(CLANG, source, flags) for source in sorted(JNI.glob("*.cpp"))]
    return link(stubs, folder / "libbcq_jni.so", found, JNI / "exports.map")


def check_file(library: Path, most_bytes: int) -> set[str]:
    """The symbols that it takes; its layout must be what Android asks for."""
    loads = re.findall(r"LOAD.*\s(0x[0-9a-f]+)$", run(["readelf", "-lW", library]), re.MULTILINE)
    assert loads and {int(align, 16) for align in loads} == {16384}
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run(["readelf", "-dW", library]))
    assert set(needed) <= {"libc.so", "libm.so"} and "libc.so" in needed
    assert "AArch64" in run(["readelf", "-hW", library])
    assert library.stat().st_size < most_bytes
    return {line.split()[-1] for line in run(["nm", "-D", "-u", library]).splitlines()}


def test_the_list_is_what_the_libraries_take(library: Path, jni_library: Path) -> None:
    # No line too many: each is a promise that Android 7 has the symbol.
    taken = check_file(library, 1_000_000) | check_file(jni_library, 1_000_000)
    assert taken == set().union(*allowed().values())


def test_a_symbol_outside_the_list_is_refused(tmp_path: Path, stubs: Path) -> None:
    source = tmp_path / "more.cpp"
    source.write_text(
        'extern "C" int bcq_more(void) { extern int backtrace(); return backtrace(); }'
    )
    found = [compiled(CLANG, source)]
    with pytest.raises(AssertionError, match="undefined symbol: backtrace"):
        link(stubs, tmp_path / "more.so", found, MOBILE / "exports.map")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, library: Path) -> list[str | Path]:
    """The command that runs the driver over that very file under qemu."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "shim.c").write_text(_SHIM)
    for name, last in (("libc", "-lc"), ("libm", "-lm")):
        words = [folder / "shim.c"] if name == "libc" else []
        soname = f"-Wl,-soname,{name}.so"
        run(["aarch64-linux-gnu-gcc", "-shared", "-fPIC", *words, soname, "-Wl,--no-as-needed",
             last, "-o", folder / f"{name}.so"])  # fmt: skip
    made = folder / "driver"
    run(["aarch64-linux-gnu-gcc", *RELEASE, compiled(AARCH64, DRIVER), library,
         f"-Wl,-rpath-link,{folder}", "-Wl,--allow-shlib-undefined", "-o", made])  # fmt: skip
    paths = f"LD_LIBRARY_PATH={folder}:{library.parent}"
    return ["qemu-aarch64", "-cpu", "cortex-a76", "-L", SYSROOT, "-E", paths, made]


@pytest.mark.parametrize("activations", [EXACT, INT8])
def test_that_very_file_draws_the_ids_of_x86(
    tmp_path: Path,
    driver: list[str | Path],
    export_mobile: Callable[..., Path],
    activations: int,
) -> None:
    package = spoken_package(tmp_path, export_mobile)
    there: Said = ask(driver, package, tmp_path, KV_F32, activations)
    wanted = ask([build(HERE, DRIVER, tmp_path)], package, tmp_path, KV_F32, activations)
    assert there.tier == "neon_dotprod"
    assert (there.ids, there.text, there.drawn) == (wanted.ids, wanted.text, wanted.drawn)
