from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from factory import make_tiny

from bcquant.errors import ConfigError
from bcquant.runtime.engine import Engine
from bcquant.runtime.sampler import SamplingOptions


@pytest.fixture(scope="module")
def model(byte_level: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny(
        "llama",
        tmp_path_factory.mktemp("model"),
        vocab_size=700,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(byte_level / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> Engine:
    return Engine.load(model)


def _without_eos(engine: Engine) -> Engine:
    """An engine that never meets an end token: random models may draw one at once."""
    tokenizer = type(engine.tokenizer)(
        engine.tokenizer.backend,
        type(engine.tokenizer.special)(bos_id=0, prefix_ids=(0,)),
    )
    return Engine(engine.decoder, tokenizer)


@pytest.mark.judge
def test_greedy_ids_equal_those_of_transformers(model: Path, engine: Engine) -> None:
    from transformers import AutoModelForCausalLM

    judge = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32).eval()
    prompt = engine.tokenizer.encode("The quick brown fox")
    wanted = judge.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    assert list(engine.generate_ids(prompt, 20, SamplingOptions())) == wanted


def test_pieces_join_to_the_decoded_ids(engine: Engine) -> None:
    quiet = _without_eos(engine)
    for seed in range(5):  # nearly random tokens: many broken characters
        generation = quiet.generate("你好", 30, SamplingOptions(temperature=2.0, seed=seed))
        text = "".join(generation)
        assert text == engine.tokenizer.decode(generation.ids)


def test_statistics_count_the_tokens(engine: Engine) -> None:
    generation = _without_eos(engine).generate("Hello", 5)
    list(generation)
    stats = generation.stats
    assert stats is not None
    assert stats.num_prompt_tokens == len(engine.tokenizer.encode("Hello"))
    assert (stats.num_new_tokens, stats.stop_reason) == (5, "length")
    assert stats.tokens_per_s > 0


def test_same_seed_gives_the_same_text(engine: Engine) -> None:
    options = SamplingOptions(temperature=1.0, seed=11)
    texts = {"".join(_without_eos(engine).generate("a", 20, options)) for _ in range(2)}
    assert len(texts) == 1


def test_end_token_ends_the_text_and_is_not_part_of_it(engine: Engine) -> None:
    free = _without_eos(engine)
    ids = list(free.generate_ids(free.tokenizer.encode("a"), 10, SamplingOptions()))
    special = type(engine.tokenizer.special)(bos_id=0, prefix_ids=(0,), eos_ids=(ids[4],))
    ending = Engine(engine.decoder, type(engine.tokenizer)(engine.tokenizer.backend, special))
    generation = ending.generate("a", 10)
    list(generation)
    assert generation.ids == ids[: ids.index(ids[4])]
    assert generation.stats is not None
    assert generation.stats.stop_reason == "eos"


def test_stop_string_ends_the_text_and_is_not_part_of_it(engine: Engine) -> None:
    free = _without_eos(engine)
    whole = "".join(free.generate("The", 20))
    stop = whole[5:7]
    generation = free.generate("The", 20, stop=[stop])
    assert "".join(generation) == whole[: whole.index(stop)]
    assert generation.stats is not None
    assert generation.stats.stop_reason == "stop"


def test_empty_prompt_starts_from_bos(engine: Engine) -> None:
    generation = _without_eos(engine).generate([], 3)
    list(generation)
    assert generation.stats is not None
    assert generation.stats.num_prompt_tokens == 1


def test_empty_prompt_without_bos_is_refused(engine: Engine) -> None:
    tokenizer = type(engine.tokenizer)(engine.tokenizer.backend, type(engine.tokenizer.special)())
    with pytest.raises(ConfigError, match="prompt is empty"):
        Engine(engine.decoder, tokenizer).generate("", 3)


def test_context_overflow_is_refused_before_anything_runs(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"60 prompt tokens and 5 new ones are 65.* holds 64"):
        engine.generate([3] * 60, 5)
    assert len(list(engine.generate_ids([3] * 60, 4, SamplingOptions()))) == 4


def test_foreign_ids_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="id 700 but the model's vocabulary has 700"):
        engine.generate([3, 700], 5)


@pytest.mark.parametrize("count", [0, -1])
def test_no_new_tokens_is_refused(engine: Engine, count: int) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        engine.generate("a", count)


def test_load_says_the_type_once(model: Path) -> None:
    lines: list[str] = []
    loaded = Engine.load(model, say=lines.append)
    assert len(lines) == 1
    assert "float32" in lines[0]
    assert loaded.decoder.embedding.dtype == torch.float32


def test_little_memory_loads_bfloat16_or_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bcquant.runtime import engine as module
    from bcquant.runtime.memory import plan_memory

    tight = plan_memory(0, 0, 0, None).needed_bytes
    monkeypatch.setattr(module, "available_memory", lambda: tight)
    with pytest.raises(ConfigError, match="bfloat16"):
        Engine.load(model)
    monkeypatch.setattr(module, "plan_memory", lambda *_: plan_memory(1 << 30, 0, 0, 3 << 30))
    loaded = Engine.load(model)
    assert loaded.decoder.embedding.dtype == torch.bfloat16
    assert len(list(loaded.generate_ids([0, 5, 9], 4, SamplingOptions()))) == 4
