"""The runtime in browsers: the WASM modules in Node, the chat page in headless Chromium.

Sums of the WASM tiers have another order than those of this CPU's, so logits differ in the last
bits; the greedy ids of tiny models must not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import make_tiny
from mobile_build import CACHE, CSRC, MOBILE, ROOT
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder, quantized_folder

from bcquant.models.source import open_model
from bcquant.runtime.chat import render_chat
from bcquant.runtime.native_model import NativeModel, NativeOptions
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

Export = Callable[..., Path]
TOOLS = ROOT / "tests" / "web"
FORMATS = {
    "4-sym": ("v1", QuantFormat(4, 32), "int8"),
    "4-asym": ("v2", QuantFormat(4, 64, False), "int8"),
    "8-row": ("compressed-tensors", QuantFormat(8, -1), "int8"),
    "3-asym": ("v2", QuantFormat(3, 32, False), "int8"),
    "w8a8": ("int-quantized", QuantFormat(8, -1, True, "int8_token"), "int8"),
}
IDS = [1, 5, 9, 33, 70]
PROMPT = "Hello \u4e16\u754c, "
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def inputs() -> str:
    """Digest of everything that build.sh reads."""
    digest = hashlib.sha256()
    folders = (MOBILE / "web", MOBILE / "runtime", MOBILE / "include", CSRC)
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and "tests" not in path.parts:
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


@pytest.fixture(scope="module")
def web() -> Path:
    """What build.sh makes, kept under build/mobile_tests by its inputs."""
    for program in ("clang++-22", "wasm-ld-22", "node"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; `make toolchains web-tools` does it")
    kept = CACHE / f"web-{inputs()}"
    if not kept.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = ["sh", str(MOBILE / "web" / "build.sh"), f"{folder}/web"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            assert done.returncode == 0, done.stderr[-4000:]
            # Node takes .js files as modules where a package.json says so.
            Path(folder, "web", "package.json").write_text('{"type": "module"}')
            Path(folder, "web").rename(kept)
    return kept


def node(program: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a program of tests/web answers."""
    command = ["node", str(TOOLS / program)]
    text = json.dumps(request)
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def in_node(web: Path, *shards: Path, **request: Any) -> dict[str, Any]:
    return node("runtime.mjs", {"web": str(web), "shards": [str(p) for p in shards], **request})


def wanted_ids(folder: Path, prompt: list[int], count: int, precision: str) -> list[int]:
    """Greedy ids of the Python engine, without the end token."""
    with open_model(folder) as source:
        model = NativeModel.load(source, NativeOptions(1, precision))
    has_ends = (folder / "tokenizer_config.json").is_file()
    ends = set(open_tokenizer(folder).eos_ids) if has_ends else set()
    model.reserve(len(prompt) + count)
    ids: list[int] = []
    given = prompt
    while len(ids) < count:
        best = int(np.argmax(model.last_logits(given)))
        if best in ends:
            break
        ids.append(best)
        given = [best]
    return ids


def greedy(count: int, **options: Any) -> dict[str, Any]:
    return {"maxTokens": count, "temperature": 0, **options}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, export_mobile: Export) -> tuple[Path, Path]:
    """A quantized checkpoint with a tokenizer and a chat template, and its package."""
    folder = tmp_path_factory.mktemp("spoken")
    source = make_checkpoint("llama", folder / "source", dtype="F16")
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "chat_template": TEMPLATE}))
    quantize_folder(source, "v1", QuantFormat(4, 32))
    return source, export_mobile(source, folder / "model.bcq")


def test_the_modules_are_small_and_import_nothing(web: Path) -> None:
    script = "const m = new WebAssembly.Module(require('fs').readFileSync(process.argv[1]));"
    script += "console.log(WebAssembly.Module.imports(m).length)"
    # An app's page grows by this; measured 0.40 MB.
    for name in ("bcq.wasm", "bcq-relaxed.wasm"):
        assert (web / name).stat().st_size < 600_000
    done = subprocess.run(
        ["node", "-e", script, str(web / "bcq.wasm")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("name", FORMATS)
def test_greedy_ids_are_those_of_the_python_engine(
    tmp_path: Path, web: Path, export_mobile: Export, name: str
) -> None:
    *how, precision = FORMATS[name]
    folder = quantized_folder(tmp_path / "source", *how, family="qwen2", eos_token_id=None)
    path = export_mobile(folder, tmp_path / "m.bcq")
    answer = in_node(web, path, runs=[{"prompt": IDS, "options": greedy(24)}])
    [made] = answer["runs"]
    assert answer["info"]["tier"] == "wasm_simd128"
    assert made["ids"] == wanted_ids(folder, IDS, 24, precision)
    assert (made["summary"]["reason"], made["summary"]["tokens"]) == ("length", 24)


def test_an_alibi_model_and_exact_activations(
    tmp_path: Path, web: Path, export_mobile: Export
) -> None:
    folder = make_tiny("baichuan13b", tmp_path / "s", "F16", hidden_size=96, eos_token_id=None)
    path = export_mobile(folder, tmp_path / "m.bcq")
    runs = [{"prompt": IDS, "options": greedy(24)}]
    answer = in_node(web, path, open={"kv": "f32", "activations": "exact"}, runs=runs)
    assert answer["runs"][0]["ids"] == wanted_ids(folder, IDS, 24, "exact")


def test_text_chat_and_stop_strings(web: Path, spoken: tuple[Path, Path]) -> None:
    source, package = spoken
    tokenizer = open_tokenizer(source)
    talk = [{"role": "user", "content": "why \u00e9\u4e16?"}]
    chat_ids = tokenizer.encode_chat(talk)
    runs = [{"prompt": PROMPT, "options": greedy(16)}, {"prompt": talk, "options": greedy(16)}]
    answer = in_node(web, package, encode=[PROMPT, "", "\ud83d\ude00 a"], chat=talk, runs=runs)
    assert answer["encoded"] == [tokenizer.encode(t) for t in (PROMPT, "", "\U0001f600 a")]
    assert answer["chat"] == render_chat(TEMPLATE, talk, "<s>", "</s>")
    for made, ids in zip(answer["runs"], (tokenizer.encode(PROMPT), chat_ids), strict=True):
        assert made["summary"]["promptTokens"] == len(ids)
        assert made["ids"] == wanted_ids(source, ids, 16, "int8")
    whole = answer["runs"][0]["text"]
    stream = tokenizer.stream()
    shown = "".join(stream.push(i) for i in answer["runs"][0]["ids"]) + stream.flush()
    assert whole == shown and len(whole) > 4
    stop = whole[3:5]
    options = greedy(16, stop=[stop, "never there"])
    [cut] = in_node(web, package, runs=[{"prompt": PROMPT, "options": options}])["runs"]
    assert cut["summary"]["reason"] == "stop"
    assert cut["text"] == whole[: whole.index(stop)]


def test_a_seed_repeats_and_a_cancelled_run_leaves_a_usable_session(
    web: Path, spoken: tuple[Path, Path]
) -> None:
    drawn = {"maxTokens": 24, "temperature": 1.5, "topK": 50, "topP": 0.95, "stop": []}
    runs = [
        {"prompt": IDS, "options": {**drawn, "seed": 7}},
        {"prompt": IDS, "options": drawn | {"seed": 7}, "cancelAfter": 5},
        {"prompt": IDS, "options": {**drawn, "seed": 7}},
        {"prompt": IDS, "options": {**drawn, "seed": 8}},
    ]
    first, cancelled, again, other = in_node(web, spoken[1], runs=runs)["runs"]
    assert first["ids"] == again["ids"] != other["ids"]
    assert cancelled["summary"]["reason"] == "cancelled"
    assert cancelled["ids"] == first["ids"][: len(cancelled["ids"])]
    assert len(cancelled["ids"]) == 5  # one look is before the prompt
    assert again["summary"]["reusedTokens"] == len(IDS) - 1


def test_addresses_beyond_two_gigabytes(web: Path, spoken: tuple[Path, Path]) -> None:
    """Where a signed address would be negative; pages that nobody touches take no memory."""
    request = {"encode": [PROMPT], "runs": [{"prompt": PROMPT, "options": greedy(8, stop=["~~"])}]}
    low, high = (in_node(web, spoken[1], **request, above=above) for above in (0, 2_200_000_000))
    assert high["memoryBytes"] > 2**31 > low["memoryBytes"]
    assert (high["encoded"], high["runs"][0]["ids"]) == (low["encoded"], low["runs"][0]["ids"])


def test_the_plan_is_kept(web: Path, spoken: tuple[Path, Path]) -> None:
    runs = [{"prompt": IDS, "options": greedy(8)}]
    answer = in_node(web, spoken[1], open={"context": 64}, runs=runs)
    plan = answer["info"]["plan"]
    parts = [plan[f"{part}Bytes"] for part in ("weight", "table", "scratch", "kv")]
    assert sum(parts) == plan["totalBytes"] and all(parts)
    # Beside the plan: 1 MB of stack, the module's data, the tokenizer, whole pages.
    assert plan["totalBytes"] < answer["memoryBytes"] < plan["totalBytes"] + 4_000_000


def damaged(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("change", "open_options", "about"),
    [
        (lambda data: damaged(data, len(data) - 1), {}, "SHA-256|digest"),
        (lambda data: data[:-1], {}, "bytes"),
        (lambda data: damaged(data, 0), {}, "no bcq package begins here"),
        (lambda data: data[:100], {}, "no bcq package begins here"),
        (lambda data: data, {"context": 257}, "256 positions"),
        (lambda data: data, {"budgetBytes": 1000}, "budget"),
        (lambda data: data, {"kv": "f64"}, "kv is f64; there are f32, f16, int8"),
    ],
)
def test_what_cannot_be_opened_is_told(
    tmp_path: Path,
    web: Path,
    spoken: tuple[Path, Path],
    change: Callable[[bytes], bytes],
    open_options: dict[str, Any],
    about: str,
) -> None:
    (tmp_path / "m.bcq").write_bytes(change(spoken[1].read_bytes()))
    answer = in_node(web, tmp_path / "m.bcq", open=open_options)
    assert re.search(about, answer.get("error", "it opened"))


@pytest.mark.parametrize(
    ("prompt", "options", "about"),
    [
        ([], {}, "no tokens"),
        ([384], {}, "384"),
        (IDS * 60, {}, "300 prompt tokens; the context has 256"),
        (IDS, {"temperature": -1}, "temperature"),
        (IDS, {"maxTokens": 0}, "maxtokens is 0; at least 1 is needed"),
        (IDS, {"stop": [""]}, "stop"),
        ([{"role": "tool", "content": ""}], {}, "role is tool"),
    ],
)
def test_what_cannot_be_generated_is_told(
    web: Path, spoken: tuple[Path, Path], prompt: Any, options: dict[str, Any], about: str
) -> None:
    good = {"prompt": IDS, "options": greedy(4)}
    runs = [good, {"prompt": prompt, "options": options}, good]
    before, bad, after = in_node(web, spoken[1], runs=runs)["runs"]
    assert about in bad.get("error", "it ran").lower()
    assert before["ids"] == after["ids"]


def test_the_declarations_name_what_there_is(web: Path) -> None:
    declared = (web / "bcq.d.ts").read_text(encoding="utf-8")
    model = declared[declared.index("export class Model {") :]
    names = set(re.findall(r"^  (?:static )?(\w+)\(", model, re.MULTILINE))
    script = f"import {{ Model, ModelError }} from '{(web / 'bcq.js').as_uri()}';"
    script += "const own = (o) => Object.getOwnPropertyNames(o);"
    script += "console.log([...own(Model), ...own(Model.prototype)].join(' '), ModelError.name)"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True
    )
    there = set(done.stdout.split()) - {"length", "name", "prototype", "constructor", "ModelError"}
    assert there == names


# ---- the page ----


class Handler(SimpleHTTPRequestHandler):
    """The page's files and packages, with ranges or without; a connection can break once."""

    has_ranges = True
    breaks_at: int | None = None
    ranges: list[str]

    def send_head(self) -> Any:
        path = Path(self.translate_path(self.path))
        if path.suffix != ".bcq" or not path.is_file():
            return super().send_head()
        data = path.read_bytes()
        wanted = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        start = int(wanted.group(1)) if wanted and self.has_ranges else 0
        self.ranges.append(f"{path.name} {wanted.group(1) if wanted else 'all'}")
        self.send_response(206 if self.has_ranges else 200)
        if self.has_ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        breaks_at, type(self).breaks_at = self.breaks_at, None
        self.wfile.write(data[start : breaks_at or len(data)])
        if breaks_at is not None:
            self.wfile.flush()
            time.sleep(0.3)  # the browser drops what it has not handed over when a connection ends
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def chromium(web: Path) -> str:
    """Path of Chromium; skips without the tools."""
    found = shutil.which("chromium-headless-shell")
    if found is None or not (TOOLS / "node_modules" / "playwright-core").is_dir():
        pytest.skip("no browser tools; `make web-tools` installs them")
    return found


@pytest.fixture
def served(tmp_path: Path, web: Path) -> Iterator[tuple[str, type[Handler]]]:
    """Address of the page in tmp_path/page, and the handler to set up."""
    shutil.copytree(web, tmp_path / "page")
    handler = type("OneHandler", (Handler,), {"ranges": []})
    bound = functools.partial(handler, directory=str(tmp_path / "page"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/?model=model.bcq", handler
    server.shutdown()
    thread.join()
    server.server_close()


def on_page(chromium: str, url: str, *turns: dict[str, Any], **request: Any) -> dict[str, Any]:
    return node("chat.mjs", {"url": url, "chromium": chromium, "turns": turns, **request})


def test_the_page_talks_as_the_python_engine(
    tmp_path: Path,
    chromium: str,
    served: tuple[str, type[Handler]],
    spoken: tuple[Path, Path],
) -> None:
    """Greedy ids of a talk of two turns; the second one goes on with what the session holds."""
    source, package = spoken
    shutil.copy(package, tmp_path / "page" / "model.bcq")
    turns = [{"text": text, "count": 12, "isChat": True} for text in ("why?", "how \u4e16?")]
    shot = tmp_path / "page.png"
    answer = on_page(chromium, served[0], *turns, screenshot=str(shot))
    assert "error" not in answer, answer["error"]
    assert "wasm_simd128 (bcq-relaxed)" in answer["loaded"]
    tokenizer = open_tokenizer(source)
    talk: list[dict[str, str]] = []
    for turn, made in zip(turns, answer["turns"], strict=True):
        talk.append({"role": "user", "content": str(turn["text"])})
        ids = tokenizer.encode_chat(talk)
        assert made["ids"] == wanted_ids(source, ids, 12, "int8")
        talk.append({"role": "assistant", "content": made["text"]})
    assert answer["turns"][1]["summary"]["reusedTokens"] > 5
    assert shot.read_bytes().startswith(b"\x89PNG") and shot.stat().st_size > 5000
    assert served[1].ranges == ["model.bcq 0"]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_broke(
    tmp_path: Path,
    chromium: str,
    served: tuple[str, type[Handler]],
    export_mobile: Export,
    has_ranges: bool,
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8}
    folder = make_tiny("llama", tmp_path / "source", "F16", eos_token_id=None, **sizes)
    export_mobile(folder, tmp_path / "page" / "model.bcq", split_mb=2)
    first, *others = sorted((tmp_path / "page").glob("*.bcq"))
    assert others
    served[1].has_ranges, served[1].breaks_at = has_ranges, 700_001
    turn = {"text": "1 5 9", "count": 8, "isChat": False}
    answer = on_page(chromium, served[0].replace("model.bcq", first.name), turn)
    assert "error" not in answer, answer["error"]
    assert answer["turns"][0]["ids"] == wanted_ids(folder, [1, 5, 9], 8, "exact")
    begun, resumed, *rest = served[1].ranges
    assert (begun, rest) == (f"{first.name} 0", [f"{path.name} 0" for path in others])
    name, position = resumed.split()
    assert name == first.name and 0 < int(position) <= 700_001


def test_a_lost_package_is_told(chromium: str, served: tuple[str, type[Handler]]) -> None:
    assert "the server answered 404" in on_page(chromium, served[0])["error"]


def test_stop_ends_a_generation(
    tmp_path: Path,
    chromium: str,
    served: tuple[str, type[Handler]],
    export_mobile: Export,
) -> None:
    positions = 20_000  # tokens take 20 us at least, so some 0.4 s
    sizes = {"hidden_size": 128, "max_position_embeddings": positions, "eos_token_id": None}
    folder = make_tiny("llama", tmp_path / "source", "F16", **sizes)
    export_mobile(folder, tmp_path / "page" / "model.bcq")
    long = {"text": "1 5 9", "count": positions, "isChat": False, "stopAfterMs": 50}
    short = {"text": "1 5 9", "count": 4, "isChat": False}
    answer = on_page(chromium, f"{served[0]}&context={positions}", long, short)
    assert "error" not in answer, answer["error"]
    stopped, after = answer["turns"]
    assert stopped["summary"]["reason"] == "cancelled"
    assert after["ids"] == stopped["ids"][:4]
