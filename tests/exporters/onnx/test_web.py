"""`--target web` in headless Chromium with onnxruntime-web: the page generates what we generate."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_run import export
from tiny_checkpoint import make_checkpoint
from tiny_quantized import quantize_folder

from bcquant.exporters.onnx.options import OnnxOptions
from bcquant.exporters.onnx.web import PAGE_FILES, notes, web_config
from bcquant.models.source import open_model
from bcquant.runtime.engine import Engine
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

TOOLS = Path(__file__).parents[2] / "web"
ORT_FOLDER = TOOLS / "node_modules" / "onnxruntime-web" / "dist"
PROMPT = "Hello \u4e16\u754c, "
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


class Handler(SimpleHTTPRequestHandler):
    """Files of an export; below /ort/ those of onnxruntime-web."""

    def translate_path(self, path: str) -> str:
        is_runtime = path.startswith("/ort/")
        return str(ORT_FOLDER / path[5:]) if is_runtime else super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def browser() -> str:
    """Path of Chromium; skips without the tools."""
    chromium = shutil.which("chromium-headless-shell")
    if chromium is None or shutil.which("node") is None or not ORT_FOLDER.is_dir():
        pytest.skip("no browser tools; `make web-tools` installs them")
    return chromium


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of tmp_path/out."""
    handler = functools.partial(Handler, directory=str(tmp_path / "out"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def quantized(family: str, folder: Path, dtype: str = "F16", **settings: Any) -> Path:
    source = make_checkpoint(family, folder, dtype=dtype, **settings)
    return quantize_folder(source, "v1", QuantFormat(4, 32))


def export_web(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Write the export; its web_config.json."""
    folder = export(source, out, target="web", **options)
    config: dict[str, Any] = json.loads((folder / "web_config.json").read_bytes())
    return config


def in_browser(chromium: str, url: str, provider: str, count: int) -> dict[str, Any]:
    request = {"url": url, "prompt": PROMPT, "count": count, "provider": provider}
    done = subprocess.run(
        ["node", str(TOOLS / "generate.mjs")],
        input=json.dumps({**request, "chromium": chromium, "timeout_s": 60}),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def wanted_ids(source: Path, count: int) -> list[int]:
    engine = Engine.load(source, dtype=torch.float32)
    ids = []
    prompt = engine.tokenizer.encode(PROMPT)
    for token in engine.generate_ids(prompt, count, SamplingOptions(temperature=0)):
        ids.append(token)
        if token in engine.tokenizer.eos_ids:
            break
    return ids


# family, variant, provider, new tokens, flags: rotary with biases and ALiBi; MatMulNBits,
# DequantizeLinear that is expanded at load, and both on a GPU (in software: seconds to compile its
# programs); float16, where rounding may choose another token later on; two data files.
CASES: dict[str, tuple[str, str, str, int, dict[str, Any]]] = {
    "ort_wasm": ("qwen2", "ort", "wasm", 16, {}),
    "std_wasm": ("baichuan13b", "std", "wasm", 16, {}),
    "ort_webgpu": ("baichuan13b", "ort", "webgpu", 5, {}),
    "std_webgpu": ("qwen2", "std", "webgpu", 5, {}),
    "float16_wasm": ("llama3", "ort", "wasm", 8, {"float16": True}),
    "split_wasm": ("llama", "ort", "wasm", 16, {"split_mb": 1}),
}


@pytest.mark.judge
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] if "gpu" in case else []) for case in CASES],
)
def test_the_page_continues_as_our_engine(
    case: str, browser: str, served: str, tmp_path: Path
) -> None:
    """The same greedy tokens from a prompt that the page's own tokenizer encodes."""
    family, variant, provider, count, options = CASES[case]
    sizes = {"hidden_size": 96} if family == "baichuan13b" else {}
    if "split_mb" in options:
        sizes = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8}
    # The software GPU has no float16.
    dtype = "F32" if provider == "webgpu" else "F16"
    source = quantized(family, tmp_path / "m", dtype, **sizes)
    config = export_web(source, tmp_path / "out", variant=variant, **options)
    assert (len(config["data_files"]) > 1) == ("split_mb" in options)
    answer = in_browser(browser, served, provider, count)
    assert "error" not in answer, answer["error"]
    assert answer["ids"] == wanted_ids(source, count)
    stream = open_tokenizer(source).stream()
    text = "".join([stream.push(token) for token in answer["ids"]]) + stream.flush()
    assert answer["text"] == text
    assert f"on {provider}" in answer["status"][0]


@pytest.mark.judge
def test_a_lost_data_file_is_told(browser: str, served: str, tmp_path: Path) -> None:
    config = export_web(quantized("llama", tmp_path / "m"), tmp_path / "out")
    (tmp_path / "out" / config["data_files"][0]).unlink()
    assert "the server answered 404" in in_browser(browser, served, "wasm", 1)["error"]


def test_web_config_of_a_model(tmp_path: Path) -> None:
    source = quantized("smollm2", tmp_path / "m")
    config = export_web(source, tmp_path / "out")
    assert config["data_files"] == ["model.onnx.data"]
    assert (config["num_layers"], config["num_kv_heads"], config["head_dim"]) == (2, 1, 16)
    assert (config["vocab_size"], config["max_positions"]) == (384, 256)
    assert (config["eos_ids"], config["prefix_ids"], config["chat"]) == ([2], [], None)
    assert (config["cache_dtype"], config["has_float16"]) == ("float32", True)
    with open_model(source) as model:
        weights = sum(model.weight(name).size for name in model.names())
    assert config["float_bytes"] == 4 * weights
    assert all((tmp_path / "out" / name).is_file() for name in PAGE_FILES)


def test_the_chat_frame_is_that_of_the_template(tmp_path: Path) -> None:
    source = quantized("llama", tmp_path / "m")
    settings = json.loads((source / "tokenizer_config.json").read_bytes())

    def frame(template: str) -> Any:
        path = source / "tokenizer_config.json"
        path.write_text(json.dumps({**settings, "chat_template": template}))
        with open_model(source) as model:
            return web_config(model, OnnxOptions(target="web"), ("d",))["chat"]

    found = frame(TEMPLATE)
    tokenizer = open_tokenizer(source)
    text = f"{found['before']}why?{found['after']}"
    assert tokenizer.encode(text, add_special=False) == tokenizer.encode_chat(
        [{"role": "user", "content": "why?"}]
    )
    assert frame(TEMPLATE + "{{ strftime_now('%d') }}") is None, "the day would be in the file"
    assert frame("{{ raise_exception('no') }}") is None
    assert frame("nothing of it") is None


def test_notes_say_what_is_slow_where(tmp_path: Path) -> None:
    with open_model(quantized("llama", tmp_path / "m")) as model:
        ort = notes(model, OnnxOptions(target="web"))
        std = notes(model, OnnxOptions(target="web", variant="std"))
    assert len(ort) == 2 and "--variant std" in ort[0] and "float16" in ort[1]
    assert std == ort[1:]
