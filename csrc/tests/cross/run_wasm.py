"""Runs a WASI module as a program: `run_wasm.py [--no-relaxed] MODULE ARGUMENT...`.

Exits as the module does; with 3 where the engine refuses the module. With --no-relaxed the engine
knows no relaxed SIMD, as older browsers do. Needs the Python package wasmtime.
"""

from __future__ import annotations

import sys

import wasmtime


def run(module_path: str, arguments: list[str], has_relaxed: bool) -> int:
    """Exit status of the module, whose output goes to ours."""
    config = wasmtime.Config()
    config.wasm_relaxed_simd = has_relaxed
    engine = wasmtime.Engine(config)
    try:
        module = wasmtime.Module.from_file(engine, module_path)
    except wasmtime.WasmtimeError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3
    system = wasmtime.WasiConfig()
    system.argv = [module_path, *arguments]
    system.inherit_stdout()
    system.inherit_stderr()
    store = wasmtime.Store(engine)
    store.set_wasi(system)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    try:
        linker.instantiate(store, module).exports(store)["_start"](store)
    except wasmtime.ExitTrap as end:
        return int(end.code)
    return 0


if __name__ == "__main__":
    rest = sys.argv[1:]
    relaxed = "--no-relaxed" not in rest
    rest = [word for word in rest if word != "--no-relaxed"]
    sys.exit(run(rest[0], rest[1:], relaxed))
