"""Text from a package: the native engine's ids from the checkpoint, through the C++ library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import make_checkpoint
from tiny_package import tiny_package
from tiny_quantized import quantize_folder

from bcquant.cli import main
from bcquant.errors import CheckpointError, ConfigError, KernelError
from bcquant.kernels.runtime_native import RuntimeOptions
from bcquant.runtime.engine_choice import open_engine
from bcquant.runtime.native_engine import NativeEngine
from bcquant.runtime.native_model import NativeOptions
from bcquant.runtime.package_engine import PackageEngine
from bcquant.runtime.sampling_options import SamplingOptions
from bcquant.runtime.tokenizer import open_tokenizer
from bcquant.spec.quant_format import QuantFormat

GREEDY = SamplingOptions()
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}"
)
EXACT = RuntimeOptions(activations="exact", kv_type="f32")


def make(family: str, folder: Path) -> Path:
    source = make_checkpoint(family, folder / "source", dtype="F16", max_position_embeddings=64)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = TEMPLATE
    (source / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    quantize_folder(source, "v1", QuantFormat(4, 32))
    assert main(["export", "mobile", str(source), "-o", str(folder / "m.bcq")]) == 0
    return folder


@pytest.fixture(scope="module", params=["qwen2", "baichuan"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` and `m.bcq`; a byte-level tokenizer, and SentencePiece."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(folder: Path) -> PackageEngine:
    return PackageEngine.load(folder / "m.bcq", EXACT)


def test_text_ids_and_ends_are_the_native_engine_s(folder: Path, engine: PackageEngine) -> None:
    native = NativeEngine.load(folder / "source", NativeOptions(precision="exact"))
    for options in (GREEDY, SamplingOptions(temperature=1.0, top_k=20, seed=7)):
        for prompt, stop in (("import", ()), ("你好", ()), ("a b", ("e", "t"))):
            mine = engine.generate(prompt, 24, options, stop)
            other = native.generate(prompt, 24, options, stop)
            assert "".join(mine) == "".join(other)
            assert mine.ids == other.ids
            assert mine.stats is not None and other.stats is not None
            assert mine.stats.stop_reason == other.stats.stop_reason
    assert engine.facts == native.facts
    for name in ("vocab_size", "num_layers", "max_positions", "bos_id", "pad_id", "family"):
        assert getattr(engine.config, name) == getattr(native.config, name)


def test_tokenizer_is_the_checkpoint_s(folder: Path, engine: PackageEngine) -> None:
    mine, other = engine.tokenizer, open_tokenizer(folder / "source")
    assert mine.special == other.special
    text = "Hello 你好 <s> x"
    assert mine.encode(text) == other.encode(text)
    assert mine.encode(text, False, False) == other.encode(text, False, False)
    ids = other.encode(text)
    for keep_special in (False, True):
        assert mine.decode(ids, keep_special) == other.decode(ids, keep_special)
    messages = [{"role": "user", "content": "hi"}]
    assert mine.encode_chat(messages) == other.encode_chat(messages)
    assert (mine.backend.find("</s>"), mine.backend.find("no such piece")) == (2, None)
    assert (mine.backend.piece(2), mine.backend.piece(-1)) == ("</s>", None)
    assert mine.backend.strips_prefix == other.backend.strips_prefix


def test_generations_do_not_disturb_each_other(engine: PackageEngine) -> None:
    alone = list(engine.generate_ids([3, 4], 8, GREEDY))
    first, second = (engine.generate_ids([3, 4], 8, GREEDY) for _ in range(2))
    both = [(a, b) for a, b in zip(first, second, strict=True)]
    assert [a for a, _ in both] == [b for _, b in both] == alone


def test_a_prompt_of_several_chunks(tmp_path: Path, engine: PackageEngine) -> None:
    with pytest.raises(ConfigError, match=r"60 prompt tokens and 5 new ones are 65.* holds 64"):
        engine.generate([3] * 60, 5)
    source = make_checkpoint("llama", tmp_path / "s", dtype="F16", max_position_embeddings=300)
    assert main(["export", "mobile", str(source), "-o", str(tmp_path / "m.bcq")]) == 0
    ids = [3 + i % 200 for i in range(290)]  # 128 + 128 + 34
    mine = PackageEngine.load(tmp_path / "m.bcq", EXACT).generate(ids, 4)
    native = NativeEngine.load(source, NativeOptions(precision="exact")).generate(ids, 4)
    assert "".join(mine) == "".join(native) and mine.ids == native.ids


def test_generate_verb_runs_a_package_without_torch(folder: Path) -> None:
    path = str(folder / "m.bcq")
    words = ["generate", path, "--prompt", "a", "--max-new-tokens", "3", "--json", "--chat"]
    code = (
        "import sys\n"
        "from bcquant.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("native engine: tier ") and "MB mapped" in done.stderr
    assert json.loads(done.stdout)["precision"] == "int8"


def test_flags_choose_what_a_package_can(folder: Path) -> None:
    path, lines = folder / "m.bcq", list[str]()
    chosen = open_engine(path, num_threads=2, precision="exact", say=lines.append)
    assert chosen.facts._replace(tier="t") == ("native", "t", 2, "exact")
    assert "2 threads, precision exact" in lines[0]
    assert open_engine(path, "native", 1, "int8").facts.precision == "int8"
    with pytest.raises(ConfigError, match="leave out --engine torch"):
        open_engine(path, "torch")
    with pytest.raises(CheckpointError, match=r"absent\.bcq cannot be opened"):
        open_engine(folder / "absent.bcq")


def test_a_package_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it has no tokenizer"):
        PackageEngine.load(tiny_package().write(tmp_path))


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = PackageEngine.load(folder / "m.bcq")
    engine.close()
    with pytest.raises(KernelError, match="was closed"):
        list(engine.generate_ids([1], 1, GREEDY))
