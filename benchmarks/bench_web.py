"""A checkpoint in headless Chromium: our WebAssembly runtime against onnxruntime-web.

Three exports of one checkpoint are opened in turn by their own pages, each in a browser of its own:
a package by mobile/web, and `bcquant export onnx --target web` as `std` (its default) and as `ort`
by onnxruntime-web, whose WASM provider has one thread where a page is not isolated, as here. A
round greedily generates the same number of tokens with each; tokens/s are what the pages show for
the tokens after the first. Files come from a local server.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:  # run as a file: `python benchmarks/bench_web.py`
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bcquant import __version__
from benchmarks._machine import Load
from benchmarks._rows import (
    Row,
    Target,
    add_common_arguments,
    make_row,
    results_path,
    write_results,
)

JSON_NAME = "web.json"
ROOT = Path(__file__).resolve().parents[1]
DRIVERS = ROOT / "tests" / "web"
ORT_WEB = DRIVERS / "node_modules" / "onnxruntime-web"
PROMPT, TIMEOUT_S = "Once upon a time, in a small village by the sea,", 300
OURS, THEIRS = "bcquant", ("onnxruntime-web std", "onnxruntime-web ort")


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    args = _arguments()
    rates: dict[str, list[float]] = {impl: [] for impl in (OURS, *THEIRS)}
    with tempfile.TemporaryDirectory(prefix="bcquant-bench-") as folder, Load([]) as load:
        pages = {impl: Path(folder) / str(i) for i, impl in enumerate(rates)}
        _make(args.model, pages)
        for _ in range(args.repeat):
            for impl, page in pages.items():
                with served(page) as url:
                    rates[impl].append(rate(impl, url, args.tokens))
                print(f"{impl}: {rates[impl][-1]} tokens/s", flush=True)
    rows = [_row(impl, rates, args.tokens) for impl in rates]
    path = results_path(args, JSON_NAME)
    busy = f"the browsers and whoever else kept {load.cores} cores busy; {args.repeat} rounds"
    notes = [" ".join(__doc__.split()), busy]
    print(write_results(path, "In a browser", rows, targets(rows), notes) + f"written: {path}")


def _make(model: Path, pages: dict[str, Path]) -> None:
    """The three folders that are served."""
    ours, std, ort = pages.values()
    subprocess.run(["sh", str(ROOT / "mobile" / "web" / "build.sh"), str(ours)], check=True)
    export = (sys.executable, "-m", "bcquant", "export")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": ROOT}
    subprocess.run([*export, "mobile", str(model), "-o", str(ours / "model.bcq")], **quiet)
    for page, variant in ((std, "std"), (ort, "ort")):
        flags = ["--target", "web", "--variant", variant]
        subprocess.run([*export, "onnx", str(model), "-o", str(page), *flags], **quiet)
        (page / "ort").symlink_to(ORT_WEB / "dist")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder."""
    handler = functools.partial(_Silent, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rate(impl: str, url: str, num_tokens: int) -> float:
    """Tokens/s that the page of one implementation shows.

    Raises:
        SystemExit: the page failed, or there is no browser.
    """
    chromium = shutil.which("chromium-headless-shell")
    if chromium is None or not ORT_WEB.is_dir():
        raise SystemExit("no browser tools; `make web-tools` installs them")
    request: dict[str, Any] = {"chromium": chromium, "timeout_s": TIMEOUT_S}
    if impl == OURS:
        turn = {"text": PROMPT, "count": num_tokens, "isChat": False}
        request |= {"url": f"{url}?model=model.bcq", "turns": [turn]}
    else:
        request |= {"url": url, "prompt": PROMPT, "count": num_tokens, "provider": "wasm"}
    driver = DRIVERS / ("chat.mjs" if impl == OURS else "generate.mjs")
    done = subprocess.run(
        ["node", str(driver)], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise SystemExit(f"{impl}: {answer['error']}")
    status = answer["turns"][0]["status"] if impl == OURS else answer["status"][1]
    return float(re.findall(r"([0-9.]+) tokens/s", status)[-1])


def _row(impl: str, rates: dict[str, list[float]], num_tokens: int) -> Row:
    middle = {name: median(found) for name, found in rates.items()}
    package = json.loads((ORT_WEB / "package.json").read_text(encoding="utf-8"))
    version = f"bcquant {__version__}" if impl == OURS else f"onnxruntime-web {package['version']}"
    return make_row(
        impl, version, "decode",
        threads=1, median_us=1e6 / middle[impl], shape=(None, None, 1),
        ratio_to={name: middle[impl] / other for name, other in middle.items() if name != impl},
        tokens_per_s=middle[impl], lowest=min(rates[impl]), highest=max(rates[impl]),
        samples=len(rates[impl]), tokens=num_tokens,
    )  # fmt: skip


def targets(rows: list[Row]) -> list[Target]:
    """The project's figure for browsers, against the faster of the two graphs."""
    ours = next(row for row in rows if row["impl"] == OURS)
    return [Target("decode against onnxruntime-web", min(ours["ratio_to"].values()), 1.5)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a 4-bit checkpoint folder")
    parser.add_argument("--tokens", type=int, metavar="N", help="64")
    add_common_arguments(parser, JSON_NAME, has_threads=False)
    args = parser.parse_args()
    args.tokens = args.tokens or (16 if args.quick else 64)
    args.repeat = args.repeat or (1 if args.quick else 5)
    return args


if __name__ == "__main__":
    main()
