"""Text from the native engine: the torch engine's greedy ids, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint, make_gguf_checkpoint
from tiny_quantized import NEAREST, quantize_folder

from bcquant.errors import ConfigError
from bcquant.runtime import engine_choice
from bcquant.runtime.engine import Engine
from bcquant.runtime.engine_choice import open_engine, physical_cores
from bcquant.runtime.native_engine import NativeEngine
from bcquant.runtime.native_model import NativeOptions
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.spec.quant_format import QuantFormat

GREEDY = SamplingOptions()


def quantized(family: str, folder: Path) -> Path:
    make_checkpoint(family, folder, dtype="F16", max_position_embeddings=64)
    return quantize_folder(folder, "v1", QuantFormat(4, 32))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantized("qwen2", tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def engine(path: Path) -> NativeEngine:
    return NativeEngine.load(path, NativeOptions(precision="exact"))


@pytest.mark.parametrize("family", ["llama3", "qwen3", "mistral", "baichuan"])
def test_greedy_ids_are_those_of_torch(family: str, tmp_path: Path) -> None:
    folder = quantized(family, tmp_path / "m")
    native = NativeEngine.load(folder, NativeOptions(precision="exact"))
    torch_engine = Engine.load(folder)
    prompt = native.tokenizer.encode("The quick brown fox")[:12]
    for options in (GREEDY, SamplingOptions(repetition_penalty=1.3)):
        wanted = list(torch_engine.generate_ids(prompt, 40, options))
        assert list(native.generate_ids(prompt, 40, options)) == wanted


def test_text_and_statistics_are_those_of_torch(path: Path, engine: NativeEngine) -> None:
    torch_engine = Engine.load(path)
    for stop in ((), ("e",)):
        mine, other = (
            engine.generate("import", 30, stop=stop),
            torch_engine.generate("import", 30, stop=stop),
        )
        assert "".join(mine) == "".join(other)
        assert mine.ids == other.ids
        assert mine.stats is not None and other.stats is not None
        assert mine.stats.num_prompt_tokens == other.stats.num_prompt_tokens
        assert mine.stats.stop_reason == other.stats.stop_reason


def test_same_seed_gives_the_same_text(engine: NativeEngine) -> None:
    options = SamplingOptions(temperature=1.0, seed=11)
    texts = {"".join(engine.generate("a", 20, options)) for _ in range(2)}
    assert len(texts) == 1


def test_context_overflow_is_refused_before_anything_runs(engine: NativeEngine) -> None:
    with pytest.raises(ConfigError, match=r"60 prompt tokens and 5 new ones are 65.* holds 64"):
        engine.generate([3] * 60, 5)
    assert len(list(engine.generate_ids([3] * 60, 4, GREEDY))) == 4


def test_second_generation_ends_the_first_one_loudly(engine: NativeEngine) -> None:
    first = engine.generate_ids([3, 4], 8, GREEDY)
    next(first)
    second = engine.generate_ids([5, 6], 8, GREEDY)
    next(second)
    with pytest.raises(ConfigError, match="another generation"):
        next(first)
    assert len(list(second)) == 7


def test_generate_runs_without_torch(path: Path) -> None:
    code = (
        "import sys\n"
        "from bcquant.cli import main\n"
        f"status = main(['generate', {str(path)!r}, '--prompt', 'a', '--max-new-tokens', '3'])\n"
        "assert status == 0, status\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "native engine: tier" in done.stderr


def test_auto_is_native_for_a_quantized_checkpoint(path: Path) -> None:
    lines: list[str] = []
    loaded = open_engine(path, num_threads=2, say=lines.append)
    assert loaded.facts._replace(tier="t") == ("native", "t", 2, "int8")
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("family", "fmt", "reason"),
    [
        ("llama", None, "not a quantized checkpoint"),
        ("llama", QuantFormat(4, 16), "q_proj has group size 16"),
        ("baichuan13b", QuantFormat(4, 32), "head_dim is 8"),
    ],
)
def test_auto_says_in_one_line_why_it_is_torch(
    family: str, fmt: QuantFormat | None, reason: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path / "m", dtype="F16")
    if fmt is not None:
        quantize_folder(folder, "v1", fmt)
    lines: list[str] = []
    loaded = open_engine(folder, say=lines.append)
    assert (loaded.facts.engine, len(lines)) == ("torch", 1)
    assert lines[0].startswith("torch engine (") and reason in lines[0]
    with pytest.raises(ConfigError, match="--precision int8 needs the native engine"):
        open_engine(folder, precision="int8")
    if fmt is not None:
        with pytest.raises(ConfigError, match=f"{reason}.*use --engine torch"):
            open_engine(folder, "native")


def test_auto_says_that_the_kernels_are_not_built(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "why_not_native", lambda source: "_native is not built")
    lines: list[str] = []
    assert open_engine(path, say=lines.append).facts.engine == "torch"
    assert lines[0].startswith("torch engine (_native is not built): ")


def test_gguf_runs_natively_when_asked(tmp_path: Path) -> None:
    file = make_gguf_checkpoint("llama", tmp_path / "m.gguf")
    lines: list[str] = []
    native = open_engine(file, "native", precision="exact", say=lines.append)
    assert lines[0].endswith("F32 matrices rounded to float16")
    assert len(list(native.generate_ids([3, 4, 5], 5, GREEDY))) == 5


@pytest.mark.parametrize("num_threads", [0, 257])
def test_threads_out_of_range_are_refused(path: Path, num_threads: int) -> None:
    with pytest.raises(ConfigError, match=f"--threads is {num_threads}"):
        open_engine(path, num_threads=num_threads)


def test_cores_that_share_threads_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 9})
    for cpu, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(tmp_path) == 3  # cpu 9 says nothing, and counts as a core


@pytest.mark.slow
def test_trained_model_speaks_the_greedy_ids_of_torch(demo_model: Path, tmp_path: Path) -> None:
    from bcquant.pipeline.quantize import quantize_model

    folder = quantize_model(demo_model, tmp_path / "q", NEAREST).folder
    native = NativeEngine.load(folder, NativeOptions(precision="exact"))
    torch_engine = Engine.load(folder)
    prompt = native.tokenizer.encode("The capital of France is")
    wanted = list(torch_engine.generate_ids(prompt, 24, GREEDY))
    assert list(native.generate_ids(prompt, 24, GREEDY)) == wanted
