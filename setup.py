"""Entry for build tools: the compiled part. Everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # Loaded through ctypes (bcquant/kernels/solver_native.py): a C ABI, no Python headers.
        Extension(
            "bcquant.kernels._solver",
            sources=["csrc/solver/grid_search.cpp", "csrc/solver/round_block.cpp"],
            depends=["csrc/include/bcq/solver.h", "csrc/solver/clones.h"],
            include_dirs=["csrc/include", "csrc/solver"],
            extra_compile_args=[
                "-std=c++17", "-O3", "-g0", "-fopenmp-simd", "-fno-math-errno",
                "-fno-trapping-math", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra",
            ],
            language="c++",
        )
    ]
)  # fmt: skip
