"""Entry for build tools: the compiled parts. Everything else is in pyproject.toml.

Kernels: one static library per instruction set (csrc/tiers.txt), one for what is around them, and
two extensions that are linked from all: Cython over the kernels, and the packages' runtime.
"""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib
from setuptools.command.build_ext import build_ext

MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
INCLUDE = ["csrc/include", "csrc"]
FLAGS = [
    "-std=c++17", "-O3", "-g0", "-fno-exceptions", "-fno-rtti", "-fno-math-errno",
    "-fvisibility=hidden", "-Wall", "-Wextra",
]  # fmt: skip
EXPORTS = [
    "-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,-Bsymbolic",
    "-Wl,--version-script=mobile/exports.map",
]  # fmt: skip


def files(*patterns: str) -> list[str]:
    """Paths below csrc, as setuptools wants them."""
    return sorted(path.as_posix() for pattern in patterns for path in Path("csrc").glob(pattern))


# A change of any of these builds all libraries again: half a minute, and nothing is ever stale.
KERNEL_INPUTS = [
    *files("include/bcq/*.h", "core/*.h", "kernels/*.h", "kernels/*.inc", "tiers.txt"),
    "setup.py",
]
RUNTIME = sorted(path.as_posix() for path in Path("mobile/runtime").iterdir())


def library(name: str, sources: list[str], flags: list[str]) -> tuple[str, dict[str, object]]:
    return name, {
        "sources": sources,
        "include_dirs": INCLUDE,
        "cflags": [*FLAGS, *flags],
        "obj_deps": {"": KERNEL_INPUTS},
    }


def libraries() -> list[tuple[str, dict[str, object]]]:
    """The core, then the tiers of this machine: the linker wants users before what they use."""
    found = [library("bcq_core", files("core/*.cpp"), ["-pthread"])]
    for line in Path("csrc/tiers.txt").read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if words and words[0] in ("any", MACHINE):
            source = f"csrc/kernels/tier_{words[1]}.cpp"
            found.append(library(f"bcq_{words[1]}", [source], words[2:]))
    return found


class BuildLibraries(build_clib):
    """`build_clib`, the libraries side by side: each tier is one source of several seconds."""

    def build_libraries(self, libraries: list[tuple[str, dict[str, object]]]) -> None:
        build_one = super().build_libraries
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda item: build_one([item]), libraries))


class BuildExtensions(build_ext):
    """`build_ext` that builds the libraries first, also for `setup.py build_ext --inplace`."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.cython_c_in_temp = True  # the generated C is no source

    def run(self) -> None:
        self.run_command("build_clib")
        super().run()


setup(
    cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtensions},
    libraries=libraries(),
    ext_modules=[
        Extension(
            "bcquant.kernels._native",
            sources=["csrc/bindings/_native.pyx"],
            depends=[
                *files("bindings/*.pxd", "bindings/*.pxi", "core/*.cpp", "kernels/*.cpp"),
                *KERNEL_INPUTS,
            ],
            include_dirs=["csrc/include", "csrc/bindings"],
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
            # Linked as C: an undefined symbol of the C++ run-time library fails the import.
            extra_link_args=["-pthread", "-lm"],
        ),
        # Loaded through ctypes (bcquant/kernels/solver_native.py): a C ABI, no Python headers.
        Extension(
            "bcquant.kernels._solver",
            sources=[
                "csrc/solver/coordinate_descent.cpp", "csrc/solver/grid_search.cpp",
                "csrc/solver/round_block.cpp", "csrc/solver/scale_refit.cpp",
            ],
            depends=[
                "csrc/include/bcq/solver.h", "csrc/solver/clones.h", "csrc/solver/float16.h",
            ],
            include_dirs=["csrc/include", "csrc/solver"],
            extra_compile_args=[
                "-std=c++17", "-O3", "-g0", "-fopenmp-simd", "-fno-math-errno",
                "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra",
            ],
            language="c++",
        ),
        # The runtime for apps (bcquant/kernels/runtime_native.py), also through ctypes; as C again.
        Extension(
            "bcquant.kernels._runtime",
            sources=[path for path in RUNTIME if path.endswith(".cpp")],
            depends=[
                *RUNTIME, "mobile/include/bcq/runtime.h", "mobile/exports.map",
                *files("core/*.cpp", "kernels/*.cpp"), *KERNEL_INPUTS,
            ],
            include_dirs=["mobile/include", "mobile", *INCLUDE],
            extra_compile_args=[
                "-std=c++17", "-O2", "-g0", "-fno-exceptions", "-fno-rtti", "-fno-math-errno",
                "-ffunction-sections", "-fdata-sections", "-pthread", "-Wall", "-Wextra",
            ],
            extra_link_args=["-pthread", "-lm", *(EXPORTS if sys.platform == "linux" else [])],
            language="c",
        ),
    ],
)  # fmt: skip
