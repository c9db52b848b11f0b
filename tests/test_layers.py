"""The layer table of DESIGN.md, held by reading every import of the package.

A module imports from its own package or from lower rows, wherever in the file the import stands.
The torch column is about importing: "no" never, "lazy" only inside a function, "yes" anywhere. A
module that imports torch at its top, directly or through others, brings torch along for whoever
imports it, so it counts as torch for them. What stands under `if TYPE_CHECKING` never runs: it
must follow the rows but is free of the torch column.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# (row, torch) of a package or module; the longest matching name counts.
LAYERS: dict[str, tuple[int, str]] = {
    "bcquant": (0, "no"),
    "bcquant.errors": (0, "no"),
    "bcquant.registry": (0, "no"),
    "bcquant.spec": (1, "no"),
    "bcquant.quant": (2, "no"),
    "bcquant.io": (2, "no"),
    "bcquant.io.torch_bin": (2, "lazy"),
    "bcquant.solvers": (3, "yes"),
    "bcquant.models": (3, "no"),
    "bcquant.kernels": (2, "no"),
    "bcquant.kernels.packed_linear": (4, "yes"),
    "bcquant.models.decoder": (4, "yes"),
    "bcquant.models.attention": (4, "yes"),
    "bcquant.models.rope": (4, "yes"),
    "bcquant.models.alibi": (4, "lazy"),
    "bcquant.models.norm": (4, "yes"),
    "bcquant.models.precision": (4, "yes"),
    "bcquant.runtime": (5, "yes"),
    "bcquant.runtime.engine_choice": (5, "lazy"),
    "bcquant.runtime.generation": (5, "no"),
    "bcquant.runtime.hard_texts": (5, "no"),
    "bcquant.runtime.memory": (5, "lazy"),
    "bcquant.runtime.native_engine": (5, "no"),
    "bcquant.runtime.native_model": (5, "no"),
    "bcquant.runtime.native_weights": (5, "no"),
    "bcquant.runtime.numpy_sampler": (5, "no"),
    "bcquant.runtime.package_engine": (5, "no"),
    "bcquant.runtime.sampling_options": (5, "lazy"),
    "bcquant.runtime.tokenizer": (5, "no"),
    "bcquant.calib": (5, "yes"),
    "bcquant.exporters": (6, "no"),
    "bcquant.loaders": (6, "no"),
    "bcquant.pipeline": (6, "yes"),
    "bcquant.train": (6, "yes"),
    "bcquant.eval": (6, "yes"),
    "bcquant.eval.native_perplexity": (6, "no"),
    "bcquant.eval.perplexity": (6, "lazy"),
    "bcquant.eval.verify": (6, "lazy"),
    "bcquant.eval.sweep": (7, "yes"),
    "bcquant.cli": (8, "lazy"),
    "bcquant.__main__": (9, "lazy"),
}
# Distributions that import torch when they are imported.
TORCH_BEARERS = (
    "torch",
    "safetensors.torch",
    "accelerate",
    "transformers",
    "compressed_tensors",
    "optimum",
    "gptqmodel",
)
# Nothing in the package imports these (from the third on they are modules of tests/).
OUTSIDE = (
    "tests", "benchmarks", "conftest", "ed25519_reference", "export_run", "factory",
    "mobile_api", "mobile_build",
    "mobile_parts", "mobile_tokenizer", "mobile_tokenizer_cases", "onnx_run", "planted_faults",
    "run_outputs", "tiny_awq", "tiny_checkpoint", "tiny_package", "tiny_quantized",
    "tiny_tokenizers",
)  # fmt: skip
# Calls that import the module their first argument names.
IMPORTING_CALLS = ("import_module", "__import__", "load", "names")


@dataclass(frozen=True)
class Import:
    """One import statement: who, what, where, inside a function or not, for type checkers only."""

    importer: str
    target: str
    line: int
    lazy: bool
    typing: bool


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(module: str) -> tuple[int, str] | None:
    """(row, torch) of a module, or None where the table has no row for it."""
    name = module
    while "." in name:
        if name in LAYERS:
            return LAYERS[name]
        name = name.rpartition(".")[0]
    return LAYERS["bcquant"] if module == "bcquant" else None


def package_of(module: str) -> str:
    """The table's unit that a module belongs to: bcquant.io.gguf -> bcquant.io."""
    return ".".join(module.split(".")[:2])


def read_sources(root: Path) -> dict[str, str]:
    """Dotted name -> source of every Python file of bcquant and exporters under `root`."""
    sources = {}
    for folder, prefix in (("bcquant", "bcquant"), ("exporters", "bcquant.exporters")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = list(path.relative_to(root / folder).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            sources[".".join([prefix, *parts])] = path.read_text(encoding="utf-8")
    return sources


def find_imports(module: str, source: str, known: set[str]) -> list[Import]:
    """Every import of one file, relative ones and those by literal name resolved."""
    is_package = any(name.startswith(module + ".") for name in known)
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing: bool) -> None:
        def add(target: str) -> None:
            found.append(Import(module, target, getattr(node, "lineno", 0), lazy, typing))

        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                add(full if full in known or full in TORCH_BEARERS else base)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in IMPORTING_CALLS and isinstance(first, ast.Constant):
                target = str(first.value)
                if within(target, "bcquant") or target in TORCH_BEARERS:
                    add(target)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            is_else = isinstance(node, ast.If) and child in node.orelse
            visit(child, lazy or inside, typing or (guarded and not is_else))

    visit(ast.parse(source), False, False)
    return found


def torch_at_import(sources: dict[str, str], imports: list[Import]) -> set[str]:
    """Modules whose import brings torch in, directly or through other modules of ours."""
    eager: dict[str, set[str]] = {name: set() for name in sources}
    for item in imports:
        if not item.lazy and not item.typing:
            parts = item.target.split(".")
            eager[item.importer] |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    for name in sources:  # importing a module imports the packages that it stands in
        parts = name.split(".")
        eager[name] |= {".".join(parts[:i]) for i in range(1, len(parts))}
    tainted: set[str] = set(TORCH_BEARERS)
    while True:
        more = {name for name, targets in eager.items() if targets & tainted} - tainted
        if not more:
            return tainted
        tainted |= more


def violations(sources: dict[str, str]) -> list[str]:
    """Every import that the table forbids, as sentences."""
    known = set(sources)
    imports = [i for name, text in sources.items() for i in find_imports(name, text, known)]
    tainted = torch_at_import(sources, imports)
    wrong = [f"{name} has no row in the layer table" for name in sources if layer_of(name) is None]
    for item in imports:
        layer = layer_of(item.importer)
        if layer is None:
            continue
        row, torch_rule = layer
        where = f"{item.importer}:{item.line} imports {item.target}"
        if any(within(item.target, name) for name in OUTSIDE):
            wrong.append(f"{where}: the package imports no tests and no benchmarks")
        if within(item.target, "bcquant"):
            other = layer_of(item.target)
            if other is None:
                wrong.append(f"{where}: it has no row in the layer table")
                continue
            same = package_of(item.importer) == package_of(item.target)
            if other[0] > row or (other[0] == row and row > 0 and not same):
                wrong.append(f"{where}: row {row} may import only lower rows, not row {other[0]}")
        brings_torch = item.target in tainted or any(within(item.target, b) for b in TORCH_BEARERS)
        if item.typing or not brings_torch:
            continue
        if torch_rule == "no":
            wrong.append(f"{where}: this brings torch into a module that must do without")
        if torch_rule == "lazy" and not item.lazy:
            wrong.append(f"{where}: torch may be imported here only inside a function")
    return wrong


def test_every_import_follows_the_layer_table() -> None:
    sources = read_sources(ROOT)
    assert len(sources) > 20  # the reader found the tree, not an empty folder
    assert violations(sources) == []


def test_no_two_modules_import_each_other_at_their_top() -> None:
    sources = read_sources(ROOT)
    known = set(sources)
    edges = {
        name: {
            i.target
            for i in find_imports(name, text, known)
            if not (i.lazy or i.typing) and i.target in known and i.target != name
        }
        for name, text in sources.items()
    }
    cyclic = set(edges)
    while True:  # drop whatever imports nothing that is left; what stays lies on or above a cycle
        free = {name for name in cyclic if not edges[name] & cyclic}
        if not free:
            break
        cyclic -= free
    assert cyclic == set()


def test_torch_free_modules_import_without_torch() -> None:
    names = [n for n in read_sources(ROOT) if (layer_of(n) or (0, "yes"))[1] != "yes"]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


GOOD = {
    "bcquant": "",
    "bcquant.errors": "",
    "bcquant.spec": "from bcquant.errors import BcquantError",
    "bcquant.io": "",
    "bcquant.io.gguf": "import numpy\nfrom bcquant.spec import x",
    "bcquant.io.torch_bin": "def read():\n    import torch\n",
    "bcquant.quant": "",
    "bcquant.models": "",
    "bcquant.models.llama": "from bcquant.io import gguf",
    "bcquant.models.norm": "import torch\nfrom . import llama",
    "bcquant.runtime": "from bcquant.models.norm import y",
    "bcquant.pipeline": "import bcquant.runtime",
    "bcquant.quant.grid": "if TYPE_CHECKING:\n    import torch\n",
    "bcquant.cli": "def run():\n    from bcquant.pipeline import z\n",
}


def test_checker_accepts_a_tree_that_follows_the_table() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("bcquant.spec", "import bcquant.io.gguf", "row 1 may import only lower rows"),
        ("bcquant.spec", "def f():\n    from bcquant import cli", "not row 8"),
        ("bcquant.io.gguf", "from bcquant import quant", "not row 2"),
        ("bcquant.io", "from ..models import llama", "not row 3"),
        ("bcquant.models.llama", "from .norm import z", "not row 4"),
        ("bcquant.io.gguf", "def f():\n    import torch", "must do without"),
        ("bcquant.io.torch_bin", "import torch", "only inside a function"),
        ("bcquant.io.gguf", "from safetensors.torch import load_file", "must do without"),
        ("bcquant.io.gguf", "from safetensors import torch", "must do without"),
        ("bcquant.cli", "from bcquant.pipeline import z", "only inside a function"),
        ("bcquant.cli", "if True:\n    import transformers.models", "only inside a function"),
        ("bcquant.models", "import importlib\nimportlib.import_module('torch')", "do without"),
        ("bcquant.runtime", "from bcquant.registry import load\nload('bcquant.cli', 'x')", "row 8"),
        ("bcquant.quant", "if TYPE_CHECKING:\n    from bcquant.cli import x", "not row 8"),
        ("bcquant.quant", "if TYPE_CHECKING:\n    pass\nelse:\n    import torch", "do without"),
        ("bcquant.runtime", "import tests.factory", "no tests"),
        ("bcquant.strange", "", "no row"),
    ],
)
def test_checker_catches_a_planted_violation(module: str, source: str, complaint: str) -> None:
    found = violations({**GOOD, module: source})
    assert any(complaint in sentence for sentence in found), found
